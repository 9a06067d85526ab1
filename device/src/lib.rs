// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! vhost-user back end that shares buffers between virtual machines
