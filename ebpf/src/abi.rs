//! What the XDP programs and their loader agree on. Included by both; no_std.

/// Entries of the socket map: queues of one interface that can have a socket.
pub const QUEUES: u32 = 64;

/// The tunnel's UDP port when nothing else is configured (RFC 7348, section 5).
pub const VXLAN_PORT: u16 = 4789;

/// Entries of the map of tunnel addresses: two for each of eight uplinks.
pub const VTEPS: u32 = 16;

/// Declares [`Outcome`] from one list: symbol, exported name, text for people.
macro_rules! outcomes {
    ($($symbol:ident $name:literal $text:literal,)*) => {
        /// What a program did with a frame; the index of its counter.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Outcome {
            $(#[doc = $text] $symbol,)*
        }

        /// How many outcomes there are.
        pub const OUTCOMES: usize = [$($name,)*].len();

        #[allow(dead_code, reason = "the programs only count; names are for the loader")]
        impl Outcome {
            /// Every outcome, in the order of their counters.
            pub const ALL: [Outcome; OUTCOMES] = [$(Outcome::$symbol,)*];

            /// The name in counters and JSON.
            pub fn name(self) -> &'static str {
                match self { $(Outcome::$symbol => $name,)* }
            }

            /// What it means.
            pub fn text(self) -> &'static str {
                match self { $(Outcome::$symbol => $text,)* }
            }
        }
    };
}

outcomes! {
    Redirected "redirected" "Given to the socket of the queue it came in on.",
    Passed "passed" "Left to the kernel: not for the tunnel.",
    PassedFragment "passed_fragment" "Left to the kernel: a fragment.",
    PassedOptions "passed_options" "Left to the kernel: IPv4 options or IPv6 extension headers.",
    PassedAddress "passed_address" "Left to the kernel: VXLAN for an address that is no VTEP here.",
    PassedShort "passed_short" "Left to the kernel: too short for the headers of a tunnel.",
    NoSocket "no_socket" "Dropped: nobody has a socket on the queue it came in on.",
}
