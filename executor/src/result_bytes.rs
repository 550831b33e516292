//! `Result<Vec<u8>, E>` with its buffer as one block.
//!
//! serde writes a `Vec<u8>` element by element, and `serde_bytes` knows buffers and optional buffers, but not those that
//! sit in a `Result`. Tasks that return one are encoded here, with the bytes of a `Result<ByteBuf, E>`. The code that
//! `#[task]` writes is the only caller.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_bytes::{ByteBuf, Bytes};

/// Encodes the result of a task; the buffer is borrowed, not copied.
///
/// # Errors
/// Whatever the serializer says.
pub fn serialize<E, S>(result: &Result<Vec<u8>, E>, serializer: S) -> Result<S::Ok, S::Error>
where
    E: Serialize,
    S: Serializer,
{
    result.as_ref().map(|bytes| Bytes::new(bytes)).serialize(serializer)
}

/// Decodes the result of a task.
///
/// # Errors
/// Whatever the deserializer says.
pub fn deserialize<'de, E, D>(deserializer: D) -> Result<Result<Vec<u8>, E>, D::Error>
where
    E: Deserialize<'de>,
    D: Deserializer<'de>,
{
    Ok(Result::<ByteBuf, E>::deserialize(deserializer)?.map(ByteBuf::into_vec))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A result and its wire form, in a format that tells bytes from sequences.
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Answer(#[serde(with = "super")] Result<Vec<u8>, String>);

    #[derive(Serialize, Deserialize)]
    struct Plain(Result<ByteBuf, String>);

    #[test]
    fn the_wire_form_is_that_of_a_result_of_a_byte_buf() {
        for result in [Ok(vec![0, 127, 255]), Ok(Vec::new()), Err("no such file".to_owned())] {
            let ours = rmp_serde::to_vec(&Answer(result.clone())).unwrap();
            let plain = rmp_serde::to_vec(&Plain(result.clone().map(ByteBuf::from))).unwrap();
            assert_eq!(ours, plain);
            assert_eq!(rmp_serde::from_slice::<Answer>(&ours).unwrap(), Answer(result));
        }
    }

    #[test]
    fn a_buffer_takes_its_own_length_and_a_short_header() {
        let encoded = rmp_serde::to_vec(&Answer(Ok(vec![255; 10_000]))).unwrap();
        assert!(encoded.len() < 10_020, "{} bytes", encoded.len());
    }
}
