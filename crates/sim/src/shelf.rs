//! A map that forgets: what is dead when it grows large, and the oldest when it grows far too large.

use std::{
    borrow::Borrow,
    collections::{HashMap, VecDeque},
    hash::Hash,
};

/// Things by their key, with a bound on how many there are.
#[derive(Debug)]
pub(crate) struct Shelf<K, V> {
    things: HashMap<K, V>,
    /// All keys, the oldest first but for those whose turn to be forgotten came while they lived.
    oldest_first: VecDeque<K>,
    /// Beyond as many, a dead one is forgotten; beyond five times as many, a living one too.
    kept: usize,
}

impl<K: Clone + Eq + Hash, V> Shelf<K, V> {
    pub(crate) fn new(kept: usize) -> Self {
        Self { things: HashMap::new(), oldest_first: VecDeque::new(), kept }
    }

    /// Puts a thing under a key that was never used before.
    pub(crate) fn put(&mut self, key: K, value: V, lives: impl Fn(&V) -> bool) {
        self.things.insert(key.clone(), value);
        self.oldest_first.push_back(key);
        // Two for each that is put, so that the dead behind the living are reached too.
        for _ in 0..2 {
            let many = self.oldest_first.len();
            if many <= self.kept {
                return;
            }
            let Some(oldest) = self.oldest_first.pop_front() else { return };
            if many <= 5 * self.kept && self.things.get(&oldest).is_some_and(&lives) {
                self.oldest_first.push_back(oldest);
            } else {
                self.things.remove(&oldest);
            }
        }
    }

    pub(crate) fn find<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.things.get(key)
    }

    pub(crate) fn find_mut<Q>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.things.get_mut(key)
    }

    /// All that is there with its keys, the oldest first but for the long-lived.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.oldest_first.iter().filter_map(|key| Some((key, self.things.get(key)?)))
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.things.values_mut()
    }

    pub(crate) fn clear(&mut self) {
        self.things.clear();
        self.oldest_first.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_whoever_lives() {
        for all_live in [false, true] {
            let mut shelf = Shelf::new(20);
            for number in 0..1_000 {
                shelf.put(number, number, |one| all_live || *one == 0);
            }
            assert_eq!(shelf.things.len(), shelf.oldest_first.len());
            assert_eq!(shelf.things.len(), if all_live { 100 } else { 20 });
            assert!(all_live || shelf.find(&0).is_some(), "the dead go first");
            assert!(shelf.find(&999).is_some());
        }
    }
}
