// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Wire format and user interface of the bufshare virtio device
