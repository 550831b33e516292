//! Large byte buffers that a task is given, or gives back, by value: they cross the border without being encoded.
//!
//! An argument or a result that is a `Vec<u8>`, a `bytes::Bytes` or a `ByteBuf` (or one of them in an `Option` or a
//! `Result`) is taken out of its place, written to the channel from where it is, read from the channel into the buffer
//! that the other side gets, and put into its place there. So its bytes are copied once on each side of the channel, and
//! nowhere else. Nothing else about the value changes: an empty buffer is encoded instead.
//!
//! `#[task]` writes the calls of what is here, for all types that are written like one of these; whether a type is one
//! is then for the compiler to say ([`Probe`]).

use bytes::Bytes;
use serde_bytes::ByteBuf;

use crate::buffers::{self, Recycled};
use crate::panic;

/// What is shorter isn't worth a way of its own.
const LEAST: usize = 64 * 1024;

/// A value that may consist of one large buffer.
pub trait Buffer {
    /// Takes the buffer out, if it is large, and leaves an empty one.
    fn take(&mut self) -> Option<Bytes>;

    /// Puts a buffer in the place of the empty one. `false`: there is none.
    fn put(&mut self, block: Vec<u8>) -> bool;
}

impl Buffer for Vec<u8> {
    fn take(&mut self) -> Option<Bytes> {
        // One that is mostly room would hold that as long as the task waits; it is encoded, which copies it.
        let is_fit = self.len() >= LEAST && self.capacity() / 2 <= self.len();
        is_fit.then(|| Bytes::from_owner(Recycled::new(std::mem::take(self))))
    }

    fn put(&mut self, block: Vec<u8>) -> bool {
        *self = block;
        true
    }
}

impl Buffer for ByteBuf {
    fn take(&mut self) -> Option<Bytes> {
        (**self).take()
    }

    fn put(&mut self, block: Vec<u8>) -> bool {
        (**self).put(block)
    }
}

impl Buffer for Bytes {
    fn take(&mut self) -> Option<Bytes> {
        if self.len() < LEAST {
            return None;
        }
        if self.is_unique() {
            return Some(std::mem::take(self));
        }
        // A part of something larger, or of an owner of the user's, isn't held as long as the task waits, nor dropped where
        // no code of the user's may run.
        let mut copy = buffers::with_room(self.len()).ok()?;
        copy.extend_from_slice(self);
        let shared = std::mem::take(self);
        let _ = panic::catch(move || drop(shared));
        Some(Bytes::from_owner(Recycled::new(copy)))
    }

    fn put(&mut self, block: Vec<u8>) -> bool {
        *self = if buffers::is_kept(&block) { Bytes::from_owner(Recycled::new(block)) } else { block.into() };
        true
    }
}

impl<B: Buffer> Buffer for Option<B> {
    fn take(&mut self) -> Option<Bytes> {
        self.as_mut()?.take()
    }

    fn put(&mut self, block: Vec<u8>) -> bool {
        self.as_mut().is_some_and(|buffer| buffer.put(block))
    }
}

impl<B: Buffer, E> Buffer for Result<B, E> {
    fn take(&mut self) -> Option<Bytes> {
        self.as_mut().ok()?.take()
    }

    fn put(&mut self, block: Vec<u8>) -> bool {
        self.as_mut().is_ok_and(|buffer| buffer.put(block))
    }
}

/// Asks whether a place holds a [`Buffer`], whatever it's called in the source: `(&mut Probe(place)).take_block()` is
/// [`Known`]'s where it does, and otherwise, one reference further, [`Unknown`]'s.
#[allow(missing_debug_implementations)]
pub struct Probe<'a, T>(pub &'a mut T);

/// A place that may hold a large buffer.
pub trait Known {
    /// As [`Buffer::take`].
    fn take_block(&mut self) -> Option<Bytes>;
    /// As [`Buffer::put`].
    fn put_block(&mut self, block: Vec<u8>) -> bool;
}

impl<B: Buffer> Known for Probe<'_, B> {
    fn take_block(&mut self) -> Option<Bytes> {
        self.0.take()
    }

    fn put_block(&mut self, block: Vec<u8>) -> bool {
        self.0.put(block)
    }
}

/// A place that holds something else.
pub trait Unknown {
    /// Nothing.
    fn take_block(&mut self) -> Option<Bytes>;
    /// `false`.
    fn put_block(&mut self, block: Vec<u8>) -> bool;
}

impl<T> Unknown for &mut Probe<'_, T> {
    fn take_block(&mut self) -> Option<Bytes> {
        None
    }

    fn put_block(&mut self, _block: Vec<u8>) -> bool {
        false
    }
}

#[cfg(test)]
// As `#[task]` writes it, for whatever type there is.
#[allow(clippy::needless_borrow)]
mod tests {
    use super::*;

    /// Takes the buffer out of a value and puts it in again.
    macro_rules! around {
        ($value:expr) => {{
            let mut value = $value;
            let block = (&mut Probe(&mut value)).take_block();
            let taken = block.as_ref().map(|block| block.len());
            let put = block.is_some_and(|block| (&mut Probe(&mut value)).put_block(block.to_vec()));
            (taken, put, value)
        }};
    }

    #[test]
    fn large_buffers_are_taken_out_and_put_back() {
        let large = vec![7; LEAST];
        assert_eq!(around!(large.clone()), (Some(LEAST), true, large.clone()));
        assert_eq!(around!(Bytes::from(large.clone())), (Some(LEAST), true, large.clone().into()));
        assert_eq!(around!(ByteBuf::from(large.clone())), (Some(LEAST), true, large.clone().into()));
        assert_eq!(around!(Some(large.clone())), (Some(LEAST), true, Some(large.clone())));
        assert_eq!(around!(Ok::<_, String>(Some(large.clone()))), (Some(LEAST), true, Ok(Some(large))));
    }

    #[test]
    fn owners_of_shared_buffers_are_let_go_at_once() {
        struct Owner {
            bytes: Vec<u8>,
            _alive: std::sync::Arc<()>,
        }
        impl AsRef<[u8]> for Owner {
            fn as_ref(&self) -> &[u8] {
                &self.bytes
            }
        }
        impl Drop for Owner {
            fn drop(&mut self) {
                if !std::thread::panicking() {
                    panic!("an owner that panics");
                }
            }
        }
        let alive = std::sync::Arc::new(());
        let mut owned = Bytes::from_owner(Owner { bytes: vec![7; LEAST], _alive: alive.clone() });
        let taken = owned.take().unwrap();
        assert_eq!((std::sync::Arc::strong_count(&alive), taken.len(), owned.len()), (1, LEAST, 0));

        let whole = Bytes::from(vec![7; 4 * LEAST]);
        let mut part = whole.slice(..LEAST);
        assert_eq!(part.take().unwrap().len(), LEAST);
        assert!(whole.is_unique(), "only what is sent is held");

        let mut roomy = Vec::with_capacity(10 * LEAST);
        roomy.resize(LEAST, 7);
        assert!(roomy.take().is_none() && roomy.len() == LEAST);
    }

    #[test]
    fn whatever_else_there_is_stays() {
        let small = vec![7; LEAST - 1];
        assert_eq!(around!(small.clone()), (None, false, small.clone()));
        assert_eq!(around!(None::<Vec<u8>>), (None, false, None));
        assert_eq!(around!(Err::<Bytes, _>(7)), (None, false, Err(7)));
        assert_eq!(around!(vec![7_u64; LEAST]), (None, false, vec![7; LEAST]));
    }

    #[test]
    fn a_block_finds_no_place_where_there_is_none() {
        assert!(!None::<Vec<u8>>.put(vec![7]));
        assert!(!Err::<Vec<u8>, _>(7).put(vec![7]));
        assert!(!(&mut Probe(&mut 7)).put_block(vec![7]));
    }
}
