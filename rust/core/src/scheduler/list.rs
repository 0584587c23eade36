//! A short list without a heap allocation: most tasks have one or two neighbours.

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum List<T> {
    #[default]
    Empty,
    One([T; 1]),
    Two([T; 2]),
    Many(Vec<T>),
}

impl<T: Copy> List<T> {
    /// An empty list with room for exactly so many.
    pub(super) fn with_capacity(count: usize) -> List<T> {
        if count > 2 {
            List::Many(Vec::with_capacity(count))
        } else {
            List::Empty
        }
    }

    pub(super) fn push(&mut self, item: T) {
        *self = match std::mem::take(self) {
            List::Empty => List::One([item]),
            List::One([a]) => List::Two([a, item]),
            List::Two([a, b]) => List::Many(vec![a, b, item]),
            List::Many(mut items) => {
                items.push(item);
                List::Many(items)
            }
        };
    }

    pub(super) fn pop(&mut self) -> Option<T> {
        let last = self.as_slice().last().copied()?;
        self.swap_remove(self.len() - 1);
        Some(last)
    }

    /// Takes out one item; the last one takes its place.
    pub(super) fn swap_remove(&mut self, at: usize) {
        if let List::Many(items) = self {
            if at < items.len() {
                items.swap_remove(at);
            }
            return;
        }
        let last = self.as_slice().last().copied();
        if let (Some(place), Some(last)) = (self.as_mut_slice().get_mut(at), last) {
            *place = last;
            *self = match std::mem::take(self) {
                List::Two([a, _]) => List::One([a]),
                _ => List::Empty,
            };
        }
    }

    pub(super) fn as_slice(&self) -> &[T] {
        match self {
            List::Empty => &[],
            List::One(items) => items,
            List::Two(items) => items,
            List::Many(items) => items,
        }
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [T] {
        match self {
            List::Empty => &mut [],
            List::One(items) => items,
            List::Two(items) => items,
            List::Many(items) => items,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.as_slice().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_like_a_vector() {
        let mut list = List::with_capacity(0);
        let mut vector = Vec::new();
        for item in 0..5u32 {
            list.push(item);
            vector.push(item);
            assert_eq!(list.as_slice(), vector);
        }
        for at in [1, 3, 0, 1, 0] {
            list.swap_remove(at);
            vector.swap_remove(at);
            assert_eq!(list.as_slice(), vector);
        }
        assert!(list.is_empty());
    }

    #[test]
    fn it_is_no_larger_than_a_vector() {
        assert_eq!(size_of::<List<u64>>(), size_of::<Vec<u64>>());
    }
}
