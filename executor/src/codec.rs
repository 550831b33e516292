//! Values to bytes and back: MessagePack by `rmp-serde`, with field names.
//!
//! Field names cost a few bytes and buy that everything serde can describe survives: `skip_serializing_if`, `flatten`,
//! internally tagged enums, `serde_json::Value`. Byte buffers travel as one block where the type says that it is one
//! (`bytes::Bytes`, `#[serde(with = "serde_bytes")]`), and `#[task]` says it for arguments and results of the type
//! `Vec<u8>`. Forcing it for every `Vec<u8>` in the codec would break such a field inside a flattened or internally
//! tagged type, which is why it is not done.
//!
//! Handles of what processes share are descriptors, which no bytes can hold. They are the luggage of a [`Message`]: collected
//! while it is packed, and handed out again while it is unpacked.

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

#[cfg(unix)]
pub(crate) use polypool_ipc::Luggage;

/// The most handles that one message may carry: arguments of one call or chunk, or their results. It's as many descriptors as most
/// systems let a process have, and bounds what a worker can make its parent open.
pub(crate) const MOST_HANDLES: usize = 1_024;

/// An encoded value with the descriptors that belong to it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message {
    pub(crate) bytes: Bytes,
    pub(crate) luggage: Luggage,
}

/// Without handles.
impl From<Bytes> for Message {
    fn from(bytes: Bytes) -> Self {
        Message { bytes, luggage: Luggage::default() }
    }
}

/// Encodes a value together with its handles; the error is the codec's message.
pub(crate) fn pack<T: Serialize + ?Sized>(value: &T) -> Result<Message, String> {
    let (bytes, luggage) = collect(|| encode(value));
    let bytes = Bytes::from(bytes?);
    match luggage.len() {
        count if count > MOST_HANDLES => {
            Err(format!("it has {count} handles, and a message carries at most {MOST_HANDLES}"))
        }
        _ => Ok(Message { bytes, luggage }),
    }
}

/// Decodes a value together with its handles; the error is the codec's message.
pub(crate) fn unpack<T: DeserializeOwned>(message: &Message) -> Result<T, String> {
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

/// Encodes a value that has no handles; the error is the codec's message.
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    value
        .serialize(&mut rmp_serde::Serializer::new(&mut bytes).with_struct_map())
        .map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// Decodes a value that has no handles; the error is the codec's message. Bytes left over are an error too.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let mut rest = bytes;
    let value = {
        let mut decoder = rmp_serde::Deserializer::new(&mut rest);
        T::deserialize(&mut decoder).map_err(|error| error.to_string())?
    };
    if rest.is_empty() { Ok(value) } else { Err(format!("{} bytes are left over after the value", rest.len())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

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
    fn bytes_left_over_are_an_error() {
        let mut bytes = encode(&7u8).unwrap();
        bytes.push(0);
        assert!(decode::<u8>(&bytes).unwrap_err().contains("left over"));
    }
}
