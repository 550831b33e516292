//! The codec's quick way: calls and lists of calls or results, with what is in them most often, numbers.
//!
//! The bytes are those of `rmp-serde`, and everything is left to it but what would otherwise cost more than the
//! work: for a number it makes some calls of functions that can't be inlined, and a chunk of calls has thousands of
//! numbers.
//!
//! **Writing.** [`Writer`] writes numbers and structs by itself. A call is written without the names of its
//! arguments, as a sequence. Both sides know the names: they have compared the signatures of their tasks. The types
//! of arguments keep theirs: fields that are skipped, flattened or tagged have no place of their own. Whoever else
//! writes a call, as JSON say, sees its names: they are left away here, not by what serde derives, which reads both
//! forms.
//!
//! **Reading.** [`Reader`] reads the list, the sequence of a call's arguments, and numbers. Where something else
//! stands, it looks how long that is, and has `rmp-serde` read it. It goes some levels deep, so the
//! peer doesn't decide how much stack it takes.

use rmp_serde::config::{DefaultConfig, StructMapConfig};
use rmp_serde::decode::{Error as ReadError, ReadRefReader};
use rmp_serde::encode::Error as WriteError;
use serde::de::{Deserialize, DeserializeOwned, DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeStruct, Serializer};

use crate::codec;

/// Writes a value behind the bytes; the error is the codec's message. `by_position`: it is a call, and goes without the
/// names of its arguments.
pub(crate) fn write<T: Serialize + ?Sized>(value: &T, by_position: bool, bytes: &mut Vec<u8>) -> Result<(), String> {
    let to = &mut inner(bytes);
    value.serialize(Writer { to, by_position }).map_err(|error| error.to_string())
}

/// Writes a list of values in the same way.
pub(crate) fn write_list<T: Serialize>(
    values: impl ExactSizeIterator<Item = T>,
    by_position: bool,
    bytes: &mut Vec<u8>,
) -> Result<(), String> {
    let to = &mut inner(bytes);
    // What it gives has nothing more to say at the end.
    let written = to.serialize_seq(Some(values.len())).map(drop).and_then(|()| {
        for value in values {
            value.serialize(Writer { to, by_position })?;
        }
        Ok(())
    });
    written.map_err(|error| error.to_string())
}

/// Reads a list; the error is the codec's message. Bytes left over are an error, too.
pub(crate) fn read_list<T: DeserializeOwned>(bytes: &[u8]) -> Result<Vec<T>, String> {
    // Where the elements are something else, looking how long each is would only take time.
    let first = match bytes {
        [0x91..=0x9f, first, ..] | [0xdc, _, _, first, ..] | [0xdd, _, _, _, _, first, ..] => *first,
        _ => return codec::decode(bytes),
    };
    if matches!(first, 0x80..=0x8f | 0xa0..=0xbf | 0xc4..=0xca | 0xd4..=0xdb | 0xde | 0xdf) {
        return codec::decode(bytes);
    }
    let mut rest = bytes;
    let list = Vec::<T>::deserialize(Reader { rest: &mut rest, levels: LEVELS }).map_err(|error| error.to_string())?;
    if rest.is_empty() { Ok(list) } else { Err("bytes are left over after the list".to_owned()) }
}

/// Writes what this file doesn't.
type Inner<'b> = rmp_serde::Serializer<&'b mut Vec<u8>, StructMapConfig<DefaultConfig>>;

fn inner(bytes: &mut Vec<u8>) -> Inner<'_> {
    rmp_serde::Serializer::new(bytes).with_struct_map()
}

/// Writes one value.
struct Writer<'a, 'b> {
    to: &'a mut Inner<'b>,
    /// Whether the fields of the struct that is written go without their names.
    by_position: bool,
}

impl Writer<'_, '_> {
    #[inline]
    fn put<const N: usize>(self, bytes: [u8; N]) -> Result<(), WriteError> {
        self.to.get_mut().extend_from_slice(&bytes);
        Ok(())
    }

    #[inline]
    fn unsigned(self, value: u64) -> Result<(), WriteError> {
        match value {
            // Each of the casts is to a type that holds the value.
            0..=0x7f => self.put([value as u8]),
            0x80..=0xff => self.put([0xcc, value as u8]),
            0x100..=0xffff => {
                let [a, b] = (value as u16).to_be_bytes();
                self.put([0xcd, a, b])
            }
            0x1_0000..=0xffff_ffff => {
                let [a, b, c, d] = (value as u32).to_be_bytes();
                self.put([0xce, a, b, c, d])
            }
            _ => {
                let [a, b, c, d, e, f, g, h] = value.to_be_bytes();
                self.put([0xcf, a, b, c, d, e, f, g, h])
            }
        }
    }

    #[inline]
    fn signed(self, value: i64) -> Result<(), WriteError> {
        match value {
            0.. => self.unsigned(value as u64),
            -0x20.. => self.put([value as u8]),
            _ => self.to.serialize_i64(value),
        }
    }
}

/// Methods that are those of `rmp-serde`.
macro_rules! left_to_be_written {
    ($($method:ident$(<$T:ident>)?($($value:ident: $type:ty),*) -> $made:ty;)*) => {$(
        fn $method$(<$T: Serialize + ?Sized>)?(self, $($value: $type),*) -> Result<$made, WriteError> {
            self.to.$method($($value),*)
        }
    )*};
}

impl<'a, 'b> Serializer for Writer<'a, 'b> {
    type Ok = ();
    type Error = WriteError;
    type SerializeSeq = <&'a mut Inner<'b> as Serializer>::SerializeSeq;
    type SerializeTuple = <&'a mut Inner<'b> as Serializer>::SerializeTuple;
    type SerializeTupleStruct = <&'a mut Inner<'b> as Serializer>::SerializeTupleStruct;
    type SerializeTupleVariant = <&'a mut Inner<'b> as Serializer>::SerializeTupleVariant;
    type SerializeMap = <&'a mut Inner<'b> as Serializer>::SerializeMap;
    type SerializeStruct = Fields<'a, 'b>;
    type SerializeStructVariant = <&'a mut Inner<'b> as Serializer>::SerializeStructVariant;

    fn is_human_readable(&self) -> bool {
        false
    }

    #[inline]
    fn serialize_u8(self, value: u8) -> Result<(), WriteError> {
        self.unsigned(value.into())
    }

    #[inline]
    fn serialize_u16(self, value: u16) -> Result<(), WriteError> {
        self.unsigned(value.into())
    }

    #[inline]
    fn serialize_u32(self, value: u32) -> Result<(), WriteError> {
        self.unsigned(value.into())
    }

    #[inline]
    fn serialize_u64(self, value: u64) -> Result<(), WriteError> {
        self.unsigned(value)
    }

    #[inline]
    fn serialize_i8(self, value: i8) -> Result<(), WriteError> {
        self.signed(value.into())
    }

    #[inline]
    fn serialize_i16(self, value: i16) -> Result<(), WriteError> {
        self.signed(value.into())
    }

    #[inline]
    fn serialize_i32(self, value: i32) -> Result<(), WriteError> {
        self.signed(value.into())
    }

    #[inline]
    fn serialize_i64(self, value: i64) -> Result<(), WriteError> {
        self.signed(value)
    }

    #[inline]
    fn serialize_bool(self, value: bool) -> Result<(), WriteError> {
        self.put([0xc2 + u8::from(value)])
    }

    #[inline]
    fn serialize_f64(self, value: f64) -> Result<(), WriteError> {
        let [a, b, c, d, e, f, g, h] = value.to_be_bytes();
        self.put([0xcb, a, b, c, d, e, f, g, h])
    }

    #[inline]
    fn serialize_struct(self, name: &'static str, len: usize) -> Result<Fields<'a, 'b>, WriteError> {
        // What they give has nothing more to say at the end.
        match (self.by_position, len) {
            (true, 0..16) => self.to.get_mut().push(0x90 | len as u8),
            (true, _) => _ = self.to.serialize_tuple_struct(name, len)?,
            (false, _) => _ = self.to.serialize_struct(name, len)?,
        }
        Ok(Fields { to: self.to, have_names: !self.by_position })
    }

    left_to_be_written! {
        serialize_i128(value: i128) -> ();
        serialize_u128(value: u128) -> ();
        serialize_f32(value: f32) -> ();
        serialize_char(value: char) -> ();
        serialize_str(value: &str) -> ();
        serialize_bytes(value: &[u8]) -> ();
        serialize_none() -> ();
        serialize_some<T>(value: &T) -> ();
        serialize_unit() -> ();
        serialize_unit_struct(name: &'static str) -> ();
        serialize_unit_variant(name: &'static str, index: u32, variant: &'static str) -> ();
        serialize_newtype_struct<T>(name: &'static str, value: &T) -> ();
        serialize_newtype_variant<T>(name: &'static str, index: u32, variant: &'static str, value: &T) -> ();
        serialize_seq(len: Option<usize>) -> Self::SerializeSeq;
        serialize_tuple(len: usize) -> Self::SerializeTuple;
        serialize_tuple_struct(name: &'static str, len: usize) -> Self::SerializeTupleStruct;
        serialize_tuple_variant(name: &'static str, index: u32, variant: &'static str, len: usize)
            -> Self::SerializeTupleVariant;
        serialize_map(len: Option<usize>) -> Self::SerializeMap;
        serialize_struct_variant(name: &'static str, index: u32, variant: &'static str, len: usize)
            -> Self::SerializeStructVariant;
    }
}

/// Writes the fields of a struct.
struct Fields<'a, 'b> {
    to: &'a mut Inner<'b>,
    have_names: bool,
}

impl SerializeStruct for Fields<'_, '_> {
    type Ok = ();
    type Error = WriteError;

    #[inline]
    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), WriteError> {
        if self.have_names {
            self.to.serialize_str(key)?;
        }
        value.serialize(Writer { to: self.to, by_position: false })
    }

    #[inline]
    fn end(self) -> Result<(), WriteError> {
        Ok(())
    }
}

/// A list of calls has the list, the arguments, and perhaps lists among these.
const LEVELS: u8 = 3;

/// Begins no value.
const SPOILT: &[u8] = &[0xc1];

/// Reads one value, and leaves what follows.
struct Reader<'a, 'de> {
    rest: &'a mut &'de [u8],
    /// It reads sequences by itself, so deep.
    levels: u8,
}

impl<'a, 'de> Reader<'a, 'de> {
    /// Has the next value, whatever it is, read by `rmp-serde`.
    fn leave<V>(
        self,
        read: impl FnOnce(&mut rmp_serde::Deserializer<ReadRefReader<'de, [u8]>>) -> Result<V, ReadError>,
    ) -> Result<V, ReadError> {
        // Of one that isn't whole, it says what is wrong.
        let (value, rest) = self.rest.split_at(extent(self.rest).unwrap_or(self.rest.len()));
        *self.rest = rest;
        let inner = &mut rmp_serde::Deserializer::from_read_ref(value);
        let read = read(inner).and_then(|value| {
            let unread = || ReadError::Uncategorized("a value was not read to its end".to_owned());
            codec::is_at_its_end(inner).then_some(value).ok_or_else(unread)
        });
        if read.is_err() {
            // A type may make nothing of an error; but nobody knows what follows then.
            *self.rest = SPOILT;
        }
        read
    }

    #[inline]
    fn number<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match *self.rest {
            [value @ ..=0x7f, rest @ ..] => {
                *self.rest = rest;
                visitor.visit_u8(*value)
            }
            [0xcc, value, rest @ ..] => {
                *self.rest = rest;
                visitor.visit_u8(*value)
            }
            [0xcd, a, b, rest @ ..] => {
                *self.rest = rest;
                visitor.visit_u16(u16::from_be_bytes([*a, *b]))
            }
            [0xce, a, b, c, d, rest @ ..] => {
                *self.rest = rest;
                visitor.visit_u32(u32::from_be_bytes([*a, *b, *c, *d]))
            }
            [0xcf, a, b, c, d, e, f, g, h, rest @ ..] => {
                *self.rest = rest;
                visitor.visit_u64(u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]))
            }
            [value @ 0xe0..=0xff, rest @ ..] => {
                *self.rest = rest;
                visitor.visit_i8(*value as i8)
            }
            [0xcb, a, b, c, d, e, f, g, h, rest @ ..] => {
                *self.rest = rest;
                visitor.visit_f64(f64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]))
            }
            _ => self.leave(|inner| inner.deserialize_u64(visitor)),
        }
    }

    #[inline]
    fn sequence<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let (len, rest) = match *self.rest {
            _ if self.levels == 0 => return self.leave(|inner| inner.deserialize_seq(visitor)),
            [head @ 0x90..=0x9f, rest @ ..] => (u32::from(*head & 0x0f), rest),
            [0xdc, a, b, rest @ ..] => (u32::from(u16::from_be_bytes([*a, *b])), rest),
            [0xdd, a, b, c, d, rest @ ..] => (u32::from_be_bytes([*a, *b, *c, *d]), rest),
            _ => return self.leave(|inner| inner.deserialize_seq(visitor)),
        };
        *self.rest = rest;
        let mut elements = Elements { rest: self.rest, left: len, levels: self.levels - 1 };
        let value = visitor.visit_seq(&mut elements)?;
        match elements.left {
            0 => Ok(value),
            left => Err(ReadError::LengthMismatch(len - left)),
        }
    }
}

/// Methods that read a number, or leave it.
macro_rules! number {
    ($($method:ident)*) => {$(
        #[inline]
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
            self.number(visitor)
        }
    )*};
}

/// Methods that are those of `rmp-serde`.
macro_rules! left_to_be_read {
    ($($method:ident($($hint:ident: $type:ty),*);)*) => {$(
        fn $method<V: Visitor<'de>>(self, $($hint: $type,)* visitor: V) -> Result<V::Value, ReadError> {
            self.leave(|inner| inner.$method($($hint,)* visitor))
        }
    )*};
}

impl<'de> Deserializer<'de> for Reader<'_, 'de> {
    type Error = ReadError;

    fn is_human_readable(&self) -> bool {
        false
    }

    number! {
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_f32 deserialize_f64
    }

    #[inline]
    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match *self.rest {
            [value @ 0xc2..=0xc3, rest @ ..] => {
                *self.rest = rest;
                visitor.visit_bool(*value == 0xc3)
            }
            _ => self.leave(|inner| inner.deserialize_bool(visitor)),
        }
    }

    #[inline]
    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match *self.rest {
            [0xc0, rest @ ..] => {
                *self.rest = rest;
                visitor.visit_unit()
            }
            _ => self.leave(|inner| inner.deserialize_unit(visitor)),
        }
    }

    #[inline]
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match *self.rest {
            [0xc0, rest @ ..] => {
                *self.rest = rest;
                visitor.visit_none()
            }
            _ => visitor.visit_some(self),
        }
    }

    #[inline]
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.sequence(visitor)
    }

    #[inline]
    fn deserialize_tuple<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, ReadError> {
        self.sequence(visitor)
    }

    #[inline]
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        // Named fields, too: the decoder looks at what is there.
        self.sequence(visitor)
    }

    left_to_be_read! {
        deserialize_any();
        deserialize_i128();
        deserialize_u128();
        deserialize_char();
        deserialize_str();
        deserialize_string();
        deserialize_bytes();
        deserialize_byte_buf();
        deserialize_unit_struct(name: &'static str);
        deserialize_newtype_struct(name: &'static str);
        deserialize_tuple_struct(name: &'static str, len: usize);
        deserialize_map();
        deserialize_enum(name: &'static str, variants: &'static [&'static str]);
        deserialize_identifier();
        deserialize_ignored_any();
    }
}

/// The elements of a sequence.
struct Elements<'a, 'de> {
    rest: &'a mut &'de [u8],
    left: u32,
    levels: u8,
}

impl<'de> SeqAccess<'de> for Elements<'_, 'de> {
    type Error = ReadError;

    #[inline]
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, ReadError> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        seed.deserialize(Reader { rest: self.rest, levels: self.levels }).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left as usize)
    }
}

/// How many bytes the value at the beginning has. `None`: it isn't whole.
fn extent(bytes: &[u8]) -> Option<usize> {
    let mut rest = bytes;
    let mut values = 1_u64;
    // Each turn takes a byte at least, so there are no more turns than bytes, and less than 2^33 values for each.
    while values > 0 {
        let (&head, after) = rest.split_first()?;
        let number = |width: usize| {
            let (number, after) = after.split_at_checked(width)?;
            Some((number.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)), after))
        };
        // How many bytes follow, and how many values after these.
        let (skipped, inside, after) = match head {
            ..=0x7f | 0xe0.. | 0xc0..=0xc3 => (0, 0, after),
            0x80..=0x8f => (0, 2 * u64::from(head & 0x0f), after),
            0x90..=0x9f => (0, u64::from(head & 0x0f), after),
            0xa0..=0xbf => (u64::from(head & 0x1f), 0, after),
            0xcc | 0xd0 => (1, 0, after),
            0xcd | 0xd1 => (2, 0, after),
            0xca | 0xce | 0xd2 => (4, 0, after),
            0xcb | 0xcf | 0xd3 => (8, 0, after),
            // With the byte that says of which kind it is.
            0xd4..=0xd8 => (1 + (1 << (head - 0xd4)), 0, after),
            0xc7..=0xc9 => number(1 << (head - 0xc7)).map(|(len, after)| (len + 1, 0, after))?,
            0xc4..=0xc6 => number(1 << (head - 0xc4)).map(|(len, after)| (len, 0, after))?,
            0xd9..=0xdb => number(1 << (head - 0xd9)).map(|(len, after)| (len, 0, after))?,
            0xdc | 0xdd => number(2 << (head - 0xdc)).map(|(len, after)| (0, len, after))?,
            0xde | 0xdf => number(2 << (head - 0xde)).map(|(len, after)| (0, 2 * len, after))?,
        };
        rest = after.get(usize::try_from(skipped).ok()?..)?;
        values = (values - 1).saturating_add(inside);
    }
    Some(bytes.len() - rest.len())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::codec::{decode, encode};
    use crate::task::{self, Run, Task};

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Part {
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
        inner: Part,
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
        Call { number: 7, bytes: vec![200, 201], inner: Part { gone: None, kept: 9 } }
    }

    #[test]
    fn arguments_cross_the_border_without_their_names_and_their_types_with_theirs() {
        let message = task::encode_argument(&call()).unwrap();
        assert_eq!(message.bytes[..], *b"\x93\x07\xc4\x02\xc8\xc9\x81\xa4kept\x09");
        assert_eq!(decode::<Call>(&message.bytes).unwrap(), call());
        let chunk = task::encode_chunk(&[call(), call()]).unwrap();
        assert_eq!(chunk.bytes[..], [b"\x92", &message.bytes[..], &message.bytes[..]].concat());
        assert_eq!(task::decode_chunk::<Call>(&chunk).unwrap(), [call(), call()]);
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
        assert_eq!(decode::<ByHand>(&message.bytes).unwrap(), call);
        let chunk = task::encode_chunk(std::slice::from_ref(&call)).unwrap();
        assert_eq!(task::decode_chunk::<ByHand>(&chunk).unwrap(), [call]);
    }

    #[test]
    fn a_wrong_number_of_arguments_is_an_error() {
        let inner = Part { gone: None, kept: 9 };
        for wrong in [encode(&(7, "")), encode(&(7, "", inner, 7)), encode(&7)].map(Result::unwrap) {
            assert!(decode::<Call>(&wrong).is_err());
            let calls = [b"\x92", &wrong[..], &encode(&call()).unwrap()].concat();
            assert!(read_list::<Call>(&calls).is_err(), "nor is what follows taken for something else");
        }
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    enum Variants {
        Unit,
        Newtype(u8),
        Tuple(u8, String),
        Struct { field: Option<i16> },
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Unit;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Newtype(i64);

    /// Writes and reads values here and with `rmp-serde`: it's the same, and whatever becomes of the bytes on the way.
    #[track_caller]
    fn same<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(values: &[T]) {
        let theirs = |value: &dyn Fn(&mut Inner<'_>)| {
            let mut bytes = Vec::new();
            value(&mut inner(&mut bytes));
            bytes
        };
        for value in values {
            let theirs = theirs(&|to| value.serialize(to).unwrap());
            assert_eq!(encode(value).unwrap(), theirs, "{value:?}");
        }
        let theirs = theirs(&|to| values.serialize(to).unwrap());
        let mut bytes = Vec::new();
        write_list(values.iter(), false, &mut bytes).unwrap();
        assert_eq!(bytes, theirs);
        assert_eq!(read_list::<T>(&bytes).unwrap(), values);
        for end in 0..bytes.len() {
            assert!(read_list::<T>(&bytes[..end]).is_err(), "{end} bytes of {bytes:x?}");
        }
        // The first of many are enough.
        for place in 0..bytes.len().min(40) {
            for byte in 0..=255 {
                let mut changed = bytes.clone();
                changed[place] = byte;
                let (ours, theirs) = (read_list::<T>(&changed).ok(), decode::<Vec<T>>(&changed).ok());
                // As text, in which what is no number is equal to itself.
                assert_eq!(format!("{ours:?}"), format!("{theirs:?}"), "{changed:x?}");
            }
        }
        bytes.push(7);
        assert!(read_list::<T>(&bytes).is_err(), "a byte is left over");
    }

    #[test]
    fn the_quick_way_is_the_ordinary_one() {
        let edges = || (0..64).map(|shift| 1_u64 << shift).flat_map(|power| [power - 1, power, power + 1]);
        same(&edges().collect::<Vec<_>>());
        same(&edges().flat_map(|edge| [edge as i64, (edge as i64).wrapping_neg()]).collect::<Vec<_>>());
        same(&edges().map(|edge| edge as i32).collect::<Vec<_>>());
        same(&edges().map(|edge| edge as u8).collect::<Vec<_>>());
        same(&[i8::MIN, -33, -32, -1, 0, i8::MAX]);
        same(&[u16::MAX, 255, 256]);
        same(&[u32::MAX, 65_536]);
        same(&[i16::MIN, -129, -128, i16::MAX]);
        same(&[true, false]);
        same(&[1.5_f64, -0.5]);
        same(&[1.5_f32]);
        same(&[u128::MAX, 7]);
        same(&[i128::MIN, 7]);
        same(&['c', 'ü']);
        same(&["", "text"].map(str::to_owned));
        same(&["x".repeat(40)]);
        same(&[serde_bytes::ByteBuf::from(vec![7, 200])]);
        same(&[None, Some(7), Some(700)]);
        same(&[Some(1.5), None]);
        same(&[(vec![7, 8],), (vec![],)]);
        same(&[((1.5, true), (), "x".to_owned())]);
        same(&[(), ()]);
        same(&[Unit]);
        same(&[Newtype(-7)]);
        same(&[(7, "x".to_owned())]);
        same(&[vec![7, 8], vec![], vec![7; 20]]);
        same(&[vec![vec![vec![7]]]]);
        same(&[[7_u8; 3]]);
        same(&[BTreeMap::from([("key".to_owned(), 7)]), BTreeMap::new()]);
        same(&[call(), call()]);
        same(&[ByHand { gone: Some(1), kept: 7, more: [("x".to_owned(), 8)].into() }]);
        same(&[serde_json::json!({"x": [1, -2, 3.5, null, "text"], "big": u64::MAX})]);
        same::<u8>(&[]);
    }

    #[test]
    fn lists_of_enums_are_read_as_they_were_written() {
        let variants = [
            Variants::Unit,
            Variants::Newtype(7),
            Variants::Tuple(7, "x".to_owned()),
            Variants::Struct { field: Some(-7) },
        ];
        same(&variants);
        same(&[Ok(7_u64), Err("x".to_owned())]);
    }

    #[test]
    fn what_a_type_leaves_of_its_value_is_an_error() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Lossy {
            #[serde(deserialize_with = "lossy")]
            pair: Option<(u8, u8)>,
            more: u8,
        }
        fn lossy<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<(u8, u8)>, D::Error> {
            Ok(<(u8, u8)>::deserialize(deserializer).ok())
        }
        // Instead of the pair, a map, which it doesn't read to the end.
        let bytes = [0x91, 0x92, 0x81, 0x01, 0x02, 0x03];
        assert!(decode::<Vec<Lossy>>(&bytes).is_err());
        assert!(read_list::<Lossy>(&bytes).is_err());
        same(&[Lossy { pair: Some((1, 2)), more: 3 }]);
    }

    #[test]
    fn calls_of_many_arguments_have_a_longer_head() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        #[rustfmt::skip]
        struct Many {
            a: u8, b: u8, c: u8, d: u8, e: u8, f: u8, g: u8, h: u8,
            i: u8, j: u8, k: u8, l: u8, m: u8, n: u8, o: u8, p: u8,
        }
        let many = || Many {
            a: 1,
            b: 2,
            c: 3,
            d: 4,
            e: 5,
            f: 6,
            g: 7,
            h: 8,
            i: 9,
            j: 10,
            k: 11,
            l: 12,
            m: 13,
            n: 14,
            o: 15,
            p: 16,
        };
        let mut bytes = Vec::new();
        write_list([many(), many()].iter(), true, &mut bytes).unwrap();
        assert_eq!(bytes.len(), 1 + 2 * (3 + 16));
        assert_eq!(read_list::<Many>(&bytes).unwrap(), [many(), many()]);
    }

    #[test]
    fn what_is_nested_deeply_takes_no_stack_here() {
        #[derive(Debug, Deserialize)]
        struct Nested {
            #[expect(dead_code, reason = "only decoded")]
            inner: Option<Box<Nested>>,
        }
        let mut bytes = vec![0x91; 10_000_000];
        bytes.push(0xc0);
        // As much as `rmp-serde` takes before it gives up.
        let read = move || read_list::<Nested>(&bytes).is_err();
        let thread = std::thread::Builder::new().stack_size(64 << 20).spawn(read).unwrap();
        assert!(thread.join().unwrap());
        assert!(read_list::<Nested>(&[0x91, 0x91, 0x91, 0xc0]).is_ok());
        // More elements than there can be.
        assert!(read_list::<u8>(&[0xdd, 0xff, 0xff, 0xff, 0xff, 7]).is_err());
        assert_eq!(extent(&[0xdf, 0xff, 0xff, 0xff, 0xff, 7]), None);
    }
}
