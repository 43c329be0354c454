//! What happens when: a queue of events in the order of virtual time.
//!
//! Events of the same moment come out in the order in which they went in.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Events that wait for their moment.
#[derive(Debug)]
pub struct Events<E> {
    heap: BinaryHeap<Reverse<Entry<E>>>,
    order: u64,
}

#[derive(Debug)]
struct Entry<E> {
    at_ns: u64,
    order: u64,
    event: E,
}

impl<E> Default for Events<E> {
    fn default() -> Self {
        Events { heap: BinaryHeap::new(), order: 0 }
    }
}

impl<E> Events<E> {
    /// Lets `event` happen at `at_ns`.
    pub fn push(&mut self, at_ns: u64, event: E) {
        self.heap.push(Reverse(Entry { at_ns, order: self.order, event }));
        self.order += 1;
    }

    /// When the next event happens.
    pub fn next_ns(&self) -> Option<u64> {
        self.heap.peek().map(|entry| entry.0.at_ns)
    }

    /// The next event and its moment, if that is not after `now_ns`.
    pub fn pop(&mut self, now_ns: u64) -> Option<(u64, E)> {
        if self.next_ns()? > now_ns {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| (entry.at_ns, entry.event))
    }

    /// Forgets all events.
    pub fn clear(&mut self) {
        self.heap.clear();
    }

    /// Events that wait.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_ns, self.order).cmp(&(other.at_ns, other.order))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_first_then_order_of_arrival() {
        let mut events = Events::default();
        for (at, name) in [(5, 'd'), (1, 'a'), (3, 'b'), (3, 'c')] {
            events.push(at, name);
        }
        assert_eq!(events.next_ns(), Some(1));
        assert_eq!(events.pop(0), None);
        let mut seen = String::new();
        while let Some((_, name)) = events.pop(4) {
            seen.push(name);
        }
        assert_eq!(seen, "abc");
        assert_eq!(events.pop(5), Some((5, 'd')));
        assert!(events.is_empty() && events.next_ns().is_none());
    }
}
