//! Engines as plain versioned data, so that an association outlives a process: `save` and `load`.
//!
//! Little-endian, no padding, lists with their length in front. What is loaded is checked as far as
//! the engines rely on it: bytes of any content are an engine that keeps its promises, or an error.

use super::capsule::{Sqe, StatusCode};
use super::digest::Check;
use super::fabrics::{Capabilities, ConnectData, Nqn};
use super::pdu::{Digests, Format, Transfer};
use super::{Fault, Op};
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

/// Entries of a list at most: a queue's slots, and some.
const MAX_LIST: usize = 1024;

/// Why saved state cannot be taken up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// It is not of this kind of engine, or of another version of it.
    #[error("the state is not of this kind of engine, or of a version that is not known")]
    Kind,
    /// It ends too early, or goes on behind its end.
    #[error("the state has the wrong length")]
    Length,
    /// A value cannot be.
    #[error("the state contradicts itself: {0}")]
    Invalid(&'static str),
}

/// Saved as bytes and loaded from them.
pub(crate) trait State: Sized {
    fn save(&self, out: &mut Vec<u8>);
    fn load(from: &mut Reader) -> Result<Self, LoadError>;
}

/// The bytes that are still to be loaded.
#[derive(Debug)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], LoadError> {
        let (first, rest) = self.0.split_first_chunk().ok_or(LoadError::Length)?;
        self.0 = rest;
        Ok(*first)
    }

    pub fn byte(&mut self) -> Result<u8, LoadError> {
        self.take().map(|[byte]| byte)
    }

    /// As many bytes as `out` has.
    pub fn bytes(&mut self, out: &mut [u8]) -> Result<(), LoadError> {
        let (first, rest) = self.0.split_at_checked(out.len()).ok_or(LoadError::Length)?;
        out.copy_from_slice(first);
        self.0 = rest;
        Ok(())
    }
}

/// Names a kind of engine and the version of its state.
pub(crate) type Kind = [u8; 8];

/// The kind, then what `write` adds.
pub(crate) fn save(kind: &Kind, write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = kind.to_vec();
    write(&mut out);
    out
}

/// What `read` makes of the bytes behind the kind, all of them.
pub(crate) fn load<T>(
    kind: &Kind,
    bytes: &[u8],
    read: impl FnOnce(&mut Reader) -> Result<T, LoadError>,
) -> Result<T, LoadError> {
    let rest = bytes.strip_prefix(kind).ok_or(LoadError::Kind)?;
    let mut from = Reader(rest);
    let value = read(&mut from)?;
    if from.0.is_empty() { Ok(value) } else { Err(LoadError::Length) }
}

/// `Invalid(what)` unless it is so.
pub(crate) fn ensure(is_so: bool, what: &'static str) -> Result<(), LoadError> {
    if is_so { Ok(()) } else { Err(LoadError::Invalid(what)) }
}

/// A structure whose fields are saved in this order.
macro_rules! state_struct {
    ($name:ty { $($field:ident),* $(,)? }) => {
        impl $crate::nvmf::state::State for $name {
            fn save(&self, out: &mut Vec<u8>) {
                $($crate::nvmf::state::State::save(&self.$field, out);)*
            }

            fn load(
                from: &mut $crate::nvmf::state::Reader,
            ) -> Result<Self, $crate::nvmf::state::LoadError> {
                Ok(Self { $($field: $crate::nvmf::state::State::load(from)?),* })
            }
        }
    };
}

/// An enum whose variants have these tags.
macro_rules! state_enum {
    ($name:ident {
        $($tag:literal => $variant:ident $({ $($field:ident),* })? $(( $part:ident ))?),* $(,)?
    }) => {
        impl $crate::nvmf::state::State for $name {
            fn save(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$variant $({ $($field),* })? $(($part))? => {
                        out.push($tag);
                        $($($crate::nvmf::state::State::save($field, out);)*)?
                        $($crate::nvmf::state::State::save($part, out);)?
                    })*
                }
            }

            fn load(
                from: &mut $crate::nvmf::state::Reader,
            ) -> Result<Self, $crate::nvmf::state::LoadError> {
                match from.byte()? {
                    $($tag => {
                        $($(let $field = $crate::nvmf::state::State::load(from)?;)*)?
                        $(let $part = $crate::nvmf::state::State::load(from)?;)?
                        Ok(Self::$variant $({ $($field),* })? $(($part))?)
                    })*
                    _ => Err($crate::nvmf::state::LoadError::Invalid(stringify!($name))),
                }
            }
        }
    };
}

pub(crate) use {state_enum, state_struct};

macro_rules! state_numbers {
    ($($number:ty),*) => {
        $(impl State for $number {
            fn save(&self, out: &mut Vec<u8>) {
                out.extend(self.to_le_bytes());
            }

            fn load(from: &mut Reader) -> Result<Self, LoadError> {
                from.take().map(<$number>::from_le_bytes)
            }
        })*
    };
}

state_numbers!(u8, u16, u32, u64);

impl State for bool {
    fn save(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }

    fn load(from: &mut Reader) -> Result<Self, LoadError> {
        match from.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(LoadError::Invalid("bool")),
        }
    }
}

impl<T: State, const N: usize> State for [T; N] {
    fn save(&self, out: &mut Vec<u8>) {
        self.iter().for_each(|item| item.save(out));
    }

    fn load(from: &mut Reader) -> Result<Self, LoadError> {
        let items: Vec<T> = (0..N).map(|_| T::load(from)).collect::<Result<_, _>>()?;
        items.try_into().map_err(|_| LoadError::Length)
    }
}

impl<T: State> State for Option<T> {
    fn save(&self, out: &mut Vec<u8>) {
        self.is_some().save(out);
        self.iter().for_each(|value| value.save(out));
    }

    fn load(from: &mut Reader) -> Result<Self, LoadError> {
        if bool::load(from)? { T::load(from).map(Some) } else { Ok(None) }
    }
}

impl<T: State> State for Vec<T> {
    fn save(&self, out: &mut Vec<u8>) {
        (self.len() as u32).save(out);
        self.iter().for_each(|item| item.save(out));
    }

    fn load(from: &mut Reader) -> Result<Self, LoadError> {
        let count = u32::load(from)? as usize;
        ensure(count <= MAX_LIST, "a list is too long")?;
        (0..count).map(|_| T::load(from)).collect()
    }
}

impl<T: State> State for VecDeque<T> {
    fn save(&self, out: &mut Vec<u8>) {
        (self.len() as u32).save(out);
        self.iter().for_each(|item| item.save(out));
    }

    fn load(from: &mut Reader) -> Result<Self, LoadError> {
        Vec::load(from).map(VecDeque::from)
    }
}

impl State for Nqn {
    fn save(&self, out: &mut Vec<u8>) {
        out.push(self.len() as u8);
        out.extend(self.as_bytes());
    }

    fn load(from: &mut Reader) -> Result<Self, LoadError> {
        let mut bytes = [0; u8::MAX as usize];
        let text = &mut bytes[..usize::from(from.byte()?)];
        from.bytes(text)?;
        let text = std::str::from_utf8(text).ok();
        text.and_then(|text| Nqn::from(text).ok()).ok_or(LoadError::Invalid("name"))
    }
}

impl State for SocketAddr {
    fn save(&self, out: &mut Vec<u8>) {
        match self.ip() {
            IpAddr::V4(address) => (4_u8, address.octets().to_vec()),
            IpAddr::V6(address) => (6, address.octets().to_vec()),
        }
        .save(out);
        self.port().save(out);
    }

    fn load(from: &mut Reader) -> Result<Self, LoadError> {
        let address = match <(u8, Vec<u8>)>::load(from)? {
            (4, octets) => <[u8; 4]>::try_from(octets).ok().map(IpAddr::from),
            (6, octets) => <[u8; 16]>::try_from(octets).ok().map(IpAddr::from),
            _ => None,
        };
        let address = address.ok_or(LoadError::Invalid("address"))?;
        Ok(SocketAddr::new(address, u16::load(from)?))
    }
}

impl<A: State, B: State> State for (A, B) {
    fn save(&self, out: &mut Vec<u8>) {
        self.0.save(out);
        self.1.save(out);
    }

    fn load(from: &mut Reader) -> Result<Self, LoadError> {
        Ok((A::load(from)?, B::load(from)?))
    }
}

impl State for Fault {
    fn save(&self, out: &mut Vec<u8>) {
        out.push(*self as u8);
    }

    fn load(from: &mut Reader) -> Result<Self, LoadError> {
        let index = usize::from(from.byte()?);
        Fault::ALL.get(index).copied().ok_or(LoadError::Invalid("fault"))
    }
}

impl State for StatusCode {
    fn save(&self, out: &mut Vec<u8>) {
        self.0.save(out);
    }

    fn load(from: &mut Reader) -> Result<Self, LoadError> {
        let value = u16::load(from)?;
        // Fifteen bits travel.
        ensure(value < 1 << 15, "status")?;
        Ok(StatusCode(value))
    }
}

impl State for Sqe {
    fn save(&self, out: &mut Vec<u8>) {
        self.0.save(out);
    }

    fn load(from: &mut Reader) -> Result<Self, LoadError> {
        State::load(from).map(Sqe)
    }
}

state_enum!(Op { 0 => Read, 1 => Write, 2 => Flush, 3 => Discard, 4 => WriteZeroes, 5 => Compare });
state_struct!(Digests { header, data });
state_struct!(Transfer { cid, tag, offset, len });
state_struct!(ConnectData { host_id, controller, subsystem, host });

impl State for Format {
    fn save(&self, out: &mut Vec<u8>) {
        (self.alignment, self.digests).save(out);
    }

    fn load(from: &mut Reader) -> Result<Self, LoadError> {
        let (alignment, digests) = State::load(from)?;
        ensure(alignment <= 31, "alignment")?;
        Ok(Format { alignment, digests })
    }
}

impl State for Capabilities {
    fn save(&self, out: &mut Vec<u8>) {
        self.0.save(out);
    }

    fn load(from: &mut Reader) -> Result<Self, LoadError> {
        State::load(from).map(Capabilities)
    }
}

impl State for Check {
    fn save(&self, out: &mut Vec<u8>) {
        self.crc.save(out);
        self.received.save(out);
        self.have.save(out);
    }

    fn load(from: &mut Reader) -> Result<Self, LoadError> {
        let check =
            Check { crc: u32::load(from)?, received: State::load(from)?, have: u8::load(from)? };
        ensure(usize::from(check.have) < check.received.len(), "digest")?;
        Ok(check)
    }
}
