//! Values to bytes and back: MessagePack by `rmp-serde`, with field names.
//!
//! Field names cost a few bytes and buy that everything serde can describe survives: `skip_serializing_if`,
//! `flatten`, internally tagged enums, `serde_json::Value`. Only the arguments of a call go without their names
//! (`quick.rs`). Byte buffers travel as one block where the type says that it is one (`bytes::Bytes`,
//! `#[serde(with = "serde_bytes")]`), and `#[task]` says it for arguments and results of the type
//! `Vec<u8>`. Forcing it for every `Vec<u8>` in the codec would break such a field inside a flattened or internally
//! tagged type, which is why it is not done. Large ones among those that `#[task]` knows don't come here at all: they
//! are the [`Block`] of a [`Message`].
//!
//! Handles of what processes share are descriptors, which no bytes can hold. They are the luggage of a [`Message`]:
//! collected while it is packed, and handed out again while it is unpacked.

use std::cell::Cell;

use bytes::Bytes;
use rmp_serde::decode::ReadRefReader;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::quick;

#[cfg(unix)]
pub(crate) use polypool_ipc::Luggage;

/// The most handles that one message may carry: arguments of one call or chunk, or their results. It's as many descriptors as most
/// systems let a process have, and bounds what a worker can make its parent open.
pub(crate) const MOST_HANDLES: usize = 1_024;

/// An encoded value with the descriptors that belong to it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message {
    pub(crate) bytes: Encoded,
    pub(crate) luggage: Luggage,
    /// Travels beside the bytes. Few have one, and all are moved about.
    pub(crate) block: Option<Box<Block>>,
}

impl Message {
    /// How many bytes it has, with those of its block.
    pub(crate) fn size(&self) -> u64 {
        (self.bytes.len() + self.block.as_ref().map_or(0, |block| block.len())) as u64
    }
}

/// A large buffer that the value was given. It isn't encoded, which would copy it, but taken out of the value, written to
/// the channel from where it is, read from there into a buffer of its own, and put back into its place (`block.rs`).
#[derive(Clone)]
pub(crate) enum Block {
    /// To be sent: its place, and the bytes.
    Given(u32, Bytes),
    Received(u32, Vec<u8>),
}

impl std::ops::Deref for Block {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Block::Given(_, bytes) => bytes,
            Block::Received(_, bytes) => bytes,
        }
    }
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Block({} bytes)", self.len())
    }
}

/// Without handles.
impl From<Encoded> for Message {
    fn from(bytes: Encoded) -> Self {
        Message { bytes, ..Message::default() }
    }
}

/// So many bytes stand in place of the reference to longer ones.
const SHORT: usize = 22;

/// Encoded bytes. The short ones, which most calls and answers are, stand in place: they take no allocation and no
/// count of owners.
#[derive(Clone)]
pub(crate) enum Encoded {
    Short { length: u8, bytes: [u8; SHORT] },
    Long(Bytes),
}

impl Encoded {
    /// A copy of those bytes.
    pub(crate) fn copy_of(from: &[u8]) -> Self {
        if from.len() > SHORT {
            return Encoded::Long(Bytes::copy_from_slice(from));
        }
        let mut bytes = [0; SHORT];
        bytes[..from.len()].copy_from_slice(from);
        // Not more than 22.
        Encoded::Short { length: from.len() as u8, bytes }
    }
}

impl Default for Encoded {
    fn default() -> Self {
        Encoded::copy_of(&[])
    }
}

impl std::ops::Deref for Encoded {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Encoded::Short { length, bytes } => &bytes[..usize::from(*length)],
            Encoded::Long(bytes) => bytes,
        }
    }
}

impl std::fmt::Debug for Encoded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Encoded({} bytes)", self.len())
    }
}

/// A short message without handles in two words: most arguments, as they wait to be sent.
#[derive(Clone, Copy)]
pub(crate) struct Brief {
    length: u8,
    bytes: [u8; BRIEF],
}

/// With its length, and one byte for those in whose place it stands, it fills two words.
const BRIEF: usize = 14;

impl Brief {
    /// The brief form of a message, if it has one.
    pub(crate) fn of(message: &Message) -> Option<Self> {
        if message.bytes.len() > BRIEF || !message.luggage.is_empty() || message.block.is_some() {
            return None;
        }
        let mut bytes = [0; BRIEF];
        bytes[..message.bytes.len()].copy_from_slice(&message.bytes);
        Some(Brief { length: message.bytes.len() as u8, bytes })
    }

    /// The message.
    pub(crate) fn message(&self) -> Message {
        Encoded::copy_of(&self.bytes[..usize::from(self.length)]).into()
    }
}

/// Encodes a value together with its handles; the error is the codec's message.
pub(crate) fn pack<T: Serialize + ?Sized>(value: &T) -> Result<Message, String> {
    pack_with(|bytes| encode_into(value, bytes))
}

/// Has something encoded together with its handles; the error is the codec's message.
pub(crate) fn pack_with(encode: impl FnOnce(&mut Vec<u8>) -> Result<(), String>) -> Result<Message, String> {
    let (bytes, luggage) = collect(|| encode_compact(encode));
    let bytes = bytes?;
    match luggage.len() {
        count if count > MOST_HANDLES => {
            Err(format!("it has {count} handles, and a message carries at most {MOST_HANDLES}"))
        }
        _ => Ok(Message { bytes, luggage, block: None }),
    }
}

/// Has something decoded together with its handles.
pub(crate) fn unpack_with<T>(message: &Message, decode: impl FnOnce(&[u8]) -> T) -> T {
    hand_out(&message.luggage, || decode(&message.bytes))
}

#[cfg(unix)]
use polypool_ipc::{pack as collect, unpack as hand_out};

/// Where there are no descriptors, there are no handles.
#[cfg(not(unix))]
mod no_luggage {
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Luggage;

    impl Luggage {
        pub(crate) fn len(&self) -> usize {
            0
        }

        pub(crate) fn is_empty(&self) -> bool {
            true
        }
    }

    pub(super) fn collect<R>(encode: impl FnOnce() -> R) -> (R, Luggage) {
        (encode(), Luggage)
    }

    pub(super) fn hand_out<R>(_: &Luggage, decode: impl FnOnce() -> R) -> R {
        decode()
    }
}
#[cfg(not(unix))]
pub(crate) use no_luggage::Luggage;
#[cfg(not(unix))]
use no_luggage::{collect, hand_out};

/// What is longer isn't copied out of the buffer that it was encoded into, but takes it along.
const COPIED: usize = 64 * 1024;

thread_local! {
    /// What this thread encodes into; its memory serves the next value.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Encodes into as little memory as it takes.
fn encode_compact(encode: impl FnOnce(&mut Vec<u8>) -> Result<(), String>) -> Result<Encoded, String> {
    // Taken, as a value may encode others while it is encoded.
    let mut scratch = SCRATCH.try_with(Cell::take).unwrap_or_default();
    scratch.clear();
    encode(&mut scratch)?;
    if scratch.len() > COPIED {
        // As large as it has become by growing, it would be up to twice as large as need be for as long as the task waits.
        if scratch.capacity() - scratch.len() > scratch.len() / 8 {
            scratch.shrink_to_fit();
        }
        return Ok(Encoded::Long(scratch.into()));
    }
    let encoded = Encoded::copy_of(&scratch);
    // What an encoder has taken and not used is given back. A thread that ends has no scratch any more.
    if scratch.capacity() <= 2 * COPIED {
        let _ = SCRATCH.try_with(|spare| spare.set(scratch));
    }
    Ok(encoded)
}

/// Encodes a value that has no handles; the error is the codec's message.
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    encode_into(value, &mut bytes)?;
    Ok(bytes)
}

fn encode_into<T: Serialize + ?Sized>(value: &T, bytes: &mut Vec<u8>) -> Result<(), String> {
    quick::write(value, false, bytes)
}

/// Decodes a value that has no handles; the error is the codec's message. Bytes left over are an error too.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    // By reference: text and blocks of bytes are looked at where they are, and copied once.
    let mut decoder = rmp_serde::Deserializer::from_read_ref(bytes);
    let value = T::deserialize(&mut decoder).map_err(|error| error.to_string())?;
    if is_at_its_end(&mut decoder) { Ok(value) } else { Err("bytes are left over after the value".to_owned()) }
}

/// Whether all bytes were read. The decoder doesn't tell how far it is; but a number that isn't there has no first byte.
pub(crate) fn is_at_its_end(decoder: &mut rmp_serde::Deserializer<ReadRefReader<'_, [u8]>>) -> bool {
    matches!(u8::deserialize(decoder), Err(rmp_serde::decode::Error::InvalidMarkerRead(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpack<T: DeserializeOwned>(message: &Message) -> Result<T, String> {
        unpack_with(message, decode)
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "kind")]
    enum Tagged {
        Picture { pixels: Vec<u8>, title: Option<String> },
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Awkward {
        #[serde(skip_serializing_if = "Option::is_none", default)]
        gone: Option<u8>,
        kept: u8,
        #[serde(flatten)]
        more: std::collections::BTreeMap<String, Vec<u8>>,
        json: serde_json::Value,
        tagged: Tagged,
    }

    #[test]
    fn everything_serde_describes_survives() {
        let value = Awkward {
            gone: None,
            kept: 7,
            more: [("a".to_owned(), vec![1, 200, 255])].into(),
            json: serde_json::json!({"x": [1, -2, 3.5, null, "text"], "big": u64::MAX}),
            tagged: Tagged::Picture { pixels: vec![0, 128, 255], title: None },
        };
        let bytes = encode(&value).unwrap();
        assert_eq!(decode::<Awkward>(&bytes).unwrap(), value);
    }

    #[test]
    fn bytes_left_over_are_an_error_whatever_they_are() {
        let whole = encode(&7u8).unwrap();
        for byte in 0..=255 {
            let bytes = [&whole[..], &[byte]].concat();
            assert!(decode::<u8>(&bytes).unwrap_err().contains("left over"), "{byte:#x}");
        }
        assert_eq!(decode::<u8>(&whole), Ok(7));
        assert!(decode::<()>(&[]).is_err());
    }

    #[test]
    fn short_and_long_bytes_are_what_they_were_made_of() {
        assert_eq!(size_of::<Encoded>(), size_of::<Bytes>());
        for length in [0, 1, SHORT - 1, SHORT, SHORT + 1, COPIED, COPIED + 1] {
            let bytes: Vec<u8> = (0..length).map(|n| n as u8).collect();
            assert_eq!(*Encoded::copy_of(&bytes), bytes[..]);
            let message = pack(serde_bytes::Bytes::new(&bytes)).unwrap();
            assert_eq!(unpack::<serde_bytes::ByteBuf>(&message).unwrap(), bytes);
        }
    }

    #[test]
    fn brief_messages_are_what_they_were_made_of() {
        for length in 0..=BRIEF + 1 {
            let bytes: Vec<u8> = (1..).take(length).collect();
            let message = Message::from(Encoded::copy_of(&bytes));
            match Brief::of(&message) {
                Some(brief) => assert_eq!(brief.message().bytes[..], bytes[..]),
                None => assert_eq!(length, BRIEF + 1),
            }
        }
        let block = Some(Box::new(Block::Received(0, vec![7])));
        assert!(Brief::of(&Message { block, ..Message::default() }).is_none());
    }

    #[test]
    fn what_is_kept_for_the_next_value_is_bounded() {
        let kept = || {
            SCRATCH.with(|scratch| {
                let own = scratch.take();
                let capacity = own.capacity();
                scratch.set(own);
                capacity
            })
        };
        for length in [1, COPIED - 10, 3 * COPIED, 5 * COPIED / 3, 1] {
            drop(pack(serde_bytes::Bytes::new(&vec![7; length])).unwrap());
            assert!(kept() <= 2 * COPIED, "{} bytes after one of {length}", kept());
        }
    }

    #[test]
    fn a_thread_that_ends_encodes_without_its_scratch() {
        struct Late(std::sync::mpsc::Sender<Vec<u8>>);
        impl Drop for Late {
            fn drop(&mut self) {
                self.0.send(pack("late").unwrap().bytes.to_vec()).unwrap();
            }
        }
        thread_local!(static LATE: std::cell::RefCell<Option<Late>> = const { std::cell::RefCell::new(None) });
        let (sender, receiver) = std::sync::mpsc::channel();
        // Destructors run in the order in which the values were first used, or in the opposite one: both.
        for late_first in [false, true] {
            let sender = sender.clone();
            let thread = std::thread::spawn(move || {
                if late_first {
                    LATE.set(Some(Late(sender)));
                    pack("early").unwrap();
                } else {
                    pack("early").unwrap();
                    LATE.set(Some(Late(sender)));
                }
            });
            assert_eq!(decode::<String>(&receiver.recv().unwrap()).unwrap(), "late");
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_value_may_encode_another_one_while_it_is_encoded() {
        struct Outer;
        impl Serialize for Outer {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_bytes(&pack("inner").unwrap().bytes)
            }
        }
        let outer = unpack::<serde_bytes::ByteBuf>(&pack(&Outer).unwrap()).unwrap();
        assert_eq!(decode::<String>(&outer).unwrap(), "inner");
    }
}
