//! Values to bytes and back: MessagePack by `rmp-serde`, with field names.
//!
//! Field names cost a few bytes and buy that everything serde can describe survives: `skip_serializing_if`, `flatten`,
//! internally tagged enums, `serde_json::Value`. Byte buffers travel as one block where the type says that it is one
//! (`bytes::Bytes`, `#[serde(with = "serde_bytes")]`), and `#[task]` says it for arguments and results of the type
//! `Vec<u8>`. Forcing it for every `Vec<u8>` in the codec would break such a field inside a flattened or internally
//! tagged type, which is why it is not done.

use serde::{Serialize, de::DeserializeOwned};

/// Encodes a value; the error is the codec's message.
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    value
        .serialize(&mut rmp_serde::Serializer::new(&mut bytes).with_struct_map())
        .map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// Decodes a value; the error is the codec's message. Bytes left over are an error too.
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
