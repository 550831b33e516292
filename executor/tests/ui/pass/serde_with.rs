//! `#[serde(with = "…")]` on an argument is for the field.
#![forbid(unsafe_code)]
#![deny(warnings)]

/// A type without serde.
#[derive(Debug, PartialEq)]
struct Celsius(f64);

mod celsius {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &super::Celsius, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(value.0)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<super::Celsius, D::Error> {
        f64::deserialize(deserializer).map(super::Celsius)
    }
}

mod hex {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{value:02x?}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        String::deserialize(deserializer).map(String::into_bytes)
    }
}

#[polypool::task]
fn kelvin(#[serde(with = "celsius")] value: Celsius, #[serde(with = "hex")] raw: Vec<u8>) -> f64 {
    value.0 + 273.15 + raw.len() as f64
}

fn main() {
    let call = kelvin { value: Celsius(1.5), raw: vec![10] };
    assert_eq!(serde_json::to_string(&call).unwrap(), r#"{"value":1.5,"raw":"[0a]"}"#);
    assert_eq!(kelvin(Celsius(0.0), Vec::new()), 273.15);
}
