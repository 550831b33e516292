//! The arguments of calls, as they cross the border: without their names.
//!
//! What serde derives for the struct of a call writes each field with its name, and for a short argument the name takes
//! longer to write and to read than the argument. Both sides know the names: they have compared the signatures of their
//! tasks. So the struct that `#[task]` makes is written here through a serializer that leaves the names of the outermost
//! struct away, and writes its fields as a sequence. What serde derives for reading takes fields with names as well as
//! those in a sequence, so nothing is here for that, and everybody else who writes a call, in JSON say, sees its names.
//!
//! The types of arguments keep theirs: fields that are skipped, flattened or tagged have no place of their own.

use serde::ser::{Serialize, SerializeSeq as _, SerializeStruct, SerializeTupleStruct, Serializer};

use crate::task::Task;

/// The arguments of one call.
pub(crate) struct Arguments<'a, T>(pub(crate) &'a T);

impl<T: Task> Serialize for Arguments<'_, T> {
    #[inline]
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if T::BY_POSITION { self.0.serialize(Nameless(serializer)) } else { self.0.serialize(serializer) }
    }
}

/// The arguments of many calls.
pub(crate) struct AllArguments<'a, T>(pub(crate) &'a [T]);

impl<T: Task> Serialize for AllArguments<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut calls = serializer.serialize_seq(Some(self.0.len()))?;
        for call in self.0 {
            calls.serialize_element(&Arguments(call))?;
        }
        calls.end()
    }
}

/// Writes a struct as one without names, and all else as the serializer within does.
struct Nameless<S>(S);

/// Methods that are those of the serializer within.
macro_rules! same {
    ($($method:ident$(<$T:ident>)?($($value:ident: $type:ty),*) -> $made:ident;)*) => {
        $(
            fn $method$(<$T: Serialize + ?Sized>)?(self, $($value: $type),*) -> Result<S::$made, S::Error> {
                self.0.$method($($value),*)
            }
        )*
    };
}

impl<S: Serializer> Serializer for Nameless<S> {
    type Ok = S::Ok;
    type Error = S::Error;
    type SerializeSeq = S::SerializeSeq;
    type SerializeTuple = S::SerializeTuple;
    type SerializeTupleStruct = S::SerializeTupleStruct;
    type SerializeTupleVariant = S::SerializeTupleVariant;
    type SerializeMap = S::SerializeMap;
    type SerializeStruct = Fields<S::SerializeTupleStruct>;
    type SerializeStructVariant = S::SerializeStructVariant;

    #[inline]
    fn serialize_struct(self, name: &'static str, len: usize) -> Result<Self::SerializeStruct, S::Error> {
        self.0.serialize_tuple_struct(name, len).map(Fields)
    }

    same! {
        serialize_bool(value: bool) -> Ok;
        serialize_i8(value: i8) -> Ok;
        serialize_i16(value: i16) -> Ok;
        serialize_i32(value: i32) -> Ok;
        serialize_i64(value: i64) -> Ok;
        serialize_i128(value: i128) -> Ok;
        serialize_u8(value: u8) -> Ok;
        serialize_u16(value: u16) -> Ok;
        serialize_u32(value: u32) -> Ok;
        serialize_u64(value: u64) -> Ok;
        serialize_u128(value: u128) -> Ok;
        serialize_f32(value: f32) -> Ok;
        serialize_f64(value: f64) -> Ok;
        serialize_char(value: char) -> Ok;
        serialize_str(value: &str) -> Ok;
        serialize_bytes(value: &[u8]) -> Ok;
        serialize_none() -> Ok;
        serialize_some<T>(value: &T) -> Ok;
        serialize_unit() -> Ok;
        serialize_unit_struct(name: &'static str) -> Ok;
        serialize_unit_variant(name: &'static str, index: u32, variant: &'static str) -> Ok;
        serialize_newtype_struct<T>(name: &'static str, value: &T) -> Ok;
        serialize_newtype_variant<T>(name: &'static str, index: u32, variant: &'static str, value: &T) -> Ok;
        serialize_seq(len: Option<usize>) -> SerializeSeq;
        serialize_tuple(len: usize) -> SerializeTuple;
        serialize_tuple_struct(name: &'static str, len: usize) -> SerializeTupleStruct;
        serialize_tuple_variant(name: &'static str, index: u32, variant: &'static str, len: usize) -> SerializeTupleVariant;
        serialize_map(len: Option<usize>) -> SerializeMap;
        serialize_struct_variant(name: &'static str, index: u32, variant: &'static str, len: usize) -> SerializeStructVariant;
    }

    fn is_human_readable(&self) -> bool {
        self.0.is_human_readable()
    }
}

/// The fields of a struct, one after another.
struct Fields<S>(S);

impl<S: SerializeTupleStruct> SerializeStruct for Fields<S> {
    type Ok = S::Ok;
    type Error = S::Error;

    #[inline]
    fn serialize_field<T: Serialize + ?Sized>(&mut self, _key: &'static str, value: &T) -> Result<(), S::Error> {
        self.0.serialize_field(value)
    }

    #[inline]
    fn end(self) -> Result<S::Ok, S::Error> {
        self.0.end()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::codec::{decode, encode};
    use crate::task::{self, Run};

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Inner {
        #[serde(skip_serializing_if = "Option::is_none", default)]
        gone: Option<u8>,
        kept: u8,
    }

    /// As `#[task]` makes it.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Call {
        number: u64,
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
        inner: Inner,
    }

    impl Task for Call {
        type Output = ();
        const NAME: &'static str = "call";
        const BY_POSITION: bool = true;

        fn run(self) -> Run<()> {
            Run::Ready(())
        }
    }

    /// Made by hand, with fields that have no place of their own.
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct ByHand {
        #[serde(skip_serializing_if = "Option::is_none", default)]
        gone: Option<u8>,
        kept: u8,
        #[serde(flatten)]
        more: BTreeMap<String, u8>,
    }

    impl Task for ByHand {
        type Output = ();
        const NAME: &'static str = "by hand";

        fn run(self) -> Run<()> {
            Run::Ready(())
        }
    }

    fn call() -> Call {
        Call { number: 7, bytes: vec![200, 201], inner: Inner { gone: None, kept: 9 } }
    }

    #[test]
    fn arguments_cross_the_border_without_their_names_and_their_types_with_theirs() {
        let message = task::encode_argument(&call()).unwrap();
        assert_eq!(message.bytes[..], *b"\x93\x07\xc4\x02\xc8\xc9\x81\xa4kept\x09");
        assert_eq!(task::decode_argument::<Call>(&message).unwrap(), call());
        let chunk = task::encode_chunk(&[call(), call()]).unwrap();
        assert_eq!(chunk.bytes[..], [b"\x92", &message.bytes[..], &message.bytes[..]].concat());
        assert_eq!(task::decode_argument::<Vec<Call>>(&chunk).unwrap(), [call(), call()]);
    }

    #[test]
    fn whoever_else_writes_a_call_sees_names() {
        let json = serde_json::to_string(&call()).unwrap();
        assert_eq!(json, r#"{"number":7,"bytes":[200,201],"inner":{"kept":9}}"#);
        let named = encode(&call()).unwrap();
        assert!(named.windows(6).any(|text| text == b"number"));
        assert_eq!(decode::<Call>(&named).unwrap(), call(), "with names it's read as well");
    }

    #[test]
    fn calls_made_by_hand_keep_their_names() {
        let call = ByHand { gone: None, kept: 7, more: [("x".to_owned(), 8)].into() };
        let message = task::encode_argument(&call).unwrap();
        assert_eq!(message.bytes[..], *b"\x82\xa4kept\x07\xa1x\x08");
        assert_eq!(task::decode_argument::<ByHand>(&message).unwrap(), call);
    }

    #[test]
    fn a_wrong_number_of_arguments_is_an_error() {
        for wrong in [(7, "").to_bytes(), (7, "", Inner { gone: None, kept: 9 }, 7).to_bytes(), 7.to_bytes()] {
            assert!(decode::<Call>(&wrong).is_err());
            let calls = [b"\x92", &wrong[..], &encode(&call()).unwrap()].concat();
            assert!(decode::<Vec<Call>>(&calls).is_err(), "nor is what follows taken for something else");
        }
    }

    trait ToBytes: Serialize {
        fn to_bytes(&self) -> Vec<u8> {
            encode(self).unwrap()
        }
    }
    impl<T: Serialize> ToBytes for T {}

    #[test]
    fn all_but_the_outermost_struct_is_written_as_ever() {
        struct Through<T>(T);
        impl<T: Serialize> Serialize for Through<T> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.0.serialize(Nameless(serializer))
            }
        }
        #[derive(Serialize)]
        enum Variants {
            Unit,
            Newtype(u8),
            Tuple(u8, u8),
            Struct { field: u8 },
        }
        #[derive(Serialize)]
        struct Unit;
        #[derive(Serialize)]
        struct Newtype(u8);
        #[derive(Serialize)]
        struct Tuple(u8, u8);
        macro_rules! same {
            ($($value:expr,)*) => {$(
                assert_eq!(Through($value).to_bytes(), $value.to_bytes(), "{}", stringify!($value));
            )*};
        }
        same!(true, 1_u8, 1_000_u16, 1_u32 << 20, 1_u64 << 40, 1_u128, -1_i8, -1_000_i16, -1_i32 << 20, -1_i64 << 40,);
        same!(-1_i128, 1.5_f32, 1.5_f64, 'c', "text", serde_bytes::Bytes::new(&[7, 200]), None::<u8>, Some(7), (),);
        same!(Unit, Newtype(7), Tuple(7, 8), Variants::Unit, Variants::Newtype(7), Variants::Tuple(7, 8),);
        same!(Variants::Struct { field: 7 }, vec![7, 8], (7, "x"), BTreeMap::from([("key", 7)]),);
    }
}
