//! What a driver can get wrong in its ring, by name. Counted per disk, never a panic.

use crate::counters::Counter;

/// Declares [`QueueFault`] from one list: symbol, exported name, text for people.
macro_rules! queue_faults {
    ($($symbol:ident $name:literal $text:literal,)*) => {
        /// What is wrong with a ring or with one descriptor chain.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum QueueFault {
            $(#[doc = $text] $symbol,)*
        }

        impl QueueFault {
            /// Every fault, in the order of their discriminants.
            pub const ALL: &[QueueFault] = &[$(QueueFault::$symbol,)*];

            /// The name in counters and JSON.
            pub fn name(self) -> &'static str {
                match self { $(QueueFault::$symbol => $name,)* }
            }

            /// What it means.
            pub fn text(self) -> &'static str {
                match self { $(QueueFault::$symbol => $text,)* }
            }
        }
    };
}

queue_faults! {
    AvailJump "avail_jump"
        "The available index moved by more than the queue size; the ring is broken.",
    HeadOutOfRange "head_out_of_range"
        "An available entry names no descriptor that exists; the ring is broken.",
    MemoryTorn "memory_torn"
        "The front end took away memory that it had shared; the ring is broken.",
    NextOutOfRange "next_out_of_range" "A descriptor is followed by one that does not exist.",
    Loop "loop" "The chain has more descriptors than its table: it runs in a circle.",
    TooManySegments "too_many_segments" "The chain has more segments than the device takes.",
    Address "address" "A buffer or an indirect table is not inside the guest's memory.",
    ZeroLength "zero_length" "A descriptor has no bytes.",
    TooLong "too_long" "The chain has more than 2^32 - 1 bytes.",
    Direction "direction" "A device-readable descriptor follows a device-writable one.",
    IndirectNotOffered "indirect_not_offered" "An indirect descriptor without the feature.",
    IndirectNested "indirect_nested" "An indirect descriptor inside an indirect table.",
    IndirectNext "indirect_next" "An indirect descriptor that is also followed by another one.",
    IndirectLength "indirect_length"
        "An indirect table of no entries, of more than 65535, or with a part of one.",
    Header "header" "A block request without its 16-byte header.",
    Status "status" "A block request without a byte for its status.",
    RequestTooLong "request_too_long" "A block request of more than 4 MiB.",
    Data "data" "A block request with data in the wrong direction.",
    Range "range" "A discard or write-zeroes without one range of at most the sectors offered.",
}

/// One count per fault.
#[derive(Debug)]
pub struct Faults([Counter; QueueFault::ALL.len()]);

impl Default for Faults {
    fn default() -> Self {
        Faults(std::array::from_fn(|_| Counter::default()))
    }
}

impl Faults {
    /// Counts one.
    #[inline(always)]
    pub fn count(&self, fault: QueueFault) {
        self.0[fault as usize].add(1);
    }

    /// How often it happened so far.
    pub fn get(&self, fault: QueueFault) -> u64 {
        self.0[fault as usize].get()
    }

    /// All of them together.
    pub fn total(&self) -> u64 {
        self.0.iter().map(Counter::get).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::QueueFault;

    #[test]
    fn names_are_unique_and_ordered() {
        let mut names: Vec<_> = QueueFault::ALL.iter().map(|fault| fault.name()).collect();
        for (index, fault) in QueueFault::ALL.iter().enumerate() {
            assert_eq!(*fault as usize, index);
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), QueueFault::ALL.len());
    }
}
