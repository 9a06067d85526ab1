// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Lists that mostly have one element.

/// A list for whose first element no memory is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Few<T> {
    first: Option<T>,
    more: Vec<T>,
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self {
            first: None,
            more: Vec::new(),
        }
    }
}

impl<T> Few<T> {
    /// Appends an element.
    pub fn push(&mut self, element: T) {
        if self.first.is_none() {
            self.first = Some(element);
        } else {
            self.more.push(element);
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.first.iter().chain(&self.more)
    }
}

impl<T> IntoIterator for Few<T> {
    type Item = T;
    type IntoIter = std::iter::Chain<std::option::IntoIter<T>, std::vec::IntoIter<T>>;

    fn into_iter(self) -> Self::IntoIter {
        self.first.into_iter().chain(self.more)
    }
}

impl<T> FromIterator<T> for Few<T> {
    fn from_iter<I: IntoIterator<Item = T>>(elements: I) -> Self {
        let mut elements = elements.into_iter();
        Self {
            first: elements.next(),
            more: elements.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Few;

    #[test]
    fn elements_stay_in_their_order() {
        for n in 0..4 {
            let mut few = Few::default();
            (0..n).for_each(|i| few.push(i));

            assert_eq!(few.is_empty(), n == 0);
            assert!(few.iter().copied().eq(0..n));
            assert_eq!(few, (0..n).collect());
            assert!(few.into_iter().eq(0..n));
        }
    }
}
