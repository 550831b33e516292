//! Containers as a whole: all their elements as one encoded value and back, for updates of the whole, and the order of
//! encoded elements, for sorting.
//!
//! A container holds its elements encoded, one by one, and doesn't know their types. An update function wants them as
//! one value, such as a `Vec<T>`. In MessagePack that is a short head and the elements one after the other, so nothing
//! has to be decoded on the way in; on the way out the elements are measured, which also needs no types.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt;
use std::hash::BuildHasher;
use std::io::Cursor;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::manager::error::Failure;

/// What an update of a whole list can be of: all its elements in their order. Implemented for `Vec` and `VecDeque`.
pub trait WholeList<T>: sealed::Sealed {}

/// What an update of a whole set can be of: all its values. Implemented for `HashSet`, `BTreeSet` and `Vec`.
pub trait WholeSet<T>: sealed::Sealed {}

/// What an update of a whole dict can be of: all its keys with their values. Implemented for `HashMap` and `BTreeMap`.
pub trait WholeDict<K, V>: sealed::Sealed {}

/// What a list in a manager can [sort](super::ListProxy::sort): numbers, `bool`, `char`, `String`, and `Option`,
/// `Vec`, `Box` and tuples of them, whose order the server knows without knowing the type.
#[diagnostic::on_unimplemented(
    message = "a manager doesn't know the order of `{Self}`",
    note = "sort it by an update of the whole list: `list.update_all(sort_it {{}})`"
)]
pub trait Sortable: sealed::Sealed {}

mod sealed {
    #[allow(unreachable_pub)]
    pub trait Sealed {}
}

macro_rules! whole {
    ($([$($generics:tt)*] $name:ty: $of:ty;)*) => {$(
        impl<$($generics)*> $of for $name {}
    )*};
}

whole! {
    [T] Vec<T>: WholeList<T>;
    [T] VecDeque<T>: WholeList<T>;
    [T] Vec<T>: WholeSet<T>;
    [T] BTreeSet<T>: WholeSet<T>;
    [T, S: BuildHasher] HashSet<T, S>: WholeSet<T>;
    [K, V] BTreeMap<K, V>: WholeDict<K, V>;
    [K, V, S: BuildHasher] HashMap<K, V, S>: WholeDict<K, V>;
    [T: Sortable] Vec<T>: Sortable;
    [T: Sortable] Option<T>: Sortable;
    [T: Sortable] Box<T>: Sortable;
    [T] Vec<T>: sealed::Sealed;
    [T] VecDeque<T>: sealed::Sealed;
    [T] BTreeSet<T>: sealed::Sealed;
    [T, S] HashSet<T, S>: sealed::Sealed;
    [K, V] BTreeMap<K, V>: sealed::Sealed;
    [K, V, S] HashMap<K, V, S>: sealed::Sealed;
    [T] Option<T>: sealed::Sealed;
    [T] Box<T>: sealed::Sealed;
}

macro_rules! sortable {
    ($($name:ty)*) => {$(
        impl sealed::Sealed for $name {}
        impl Sortable for $name {}
    )*};
}

macro_rules! sortable_tuples {
    ($(($($name:ident)+))*) => {$(
        impl<$($name: Sortable),+> sealed::Sealed for ($($name,)+) {}
        impl<$($name: Sortable),+> Sortable for ($($name,)+) {}
    )*};
}

sortable!(u8 u16 u32 u64 usize i8 i16 i32 i64 isize f32 f64 bool char String);
sortable_tuples!((A) (A B) (A B C) (A B C D) (A B C D E) (A B C D E F));

/// All elements as one encoded sequence.
pub(super) fn sequence<'a>(items: impl ExactSizeIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut whole = head(items.len(), 0x90, 0xDC);
    items.for_each(|item| whole.extend_from_slice(item));
    whole
}

/// All keys and values as one encoded map.
pub(super) fn map<'a>(count: usize, items: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Vec<u8> {
    let mut whole = head(count, 0x80, 0xDE);
    items.for_each(|(key, value)| {
        whole.extend_from_slice(key);
        whole.extend_from_slice(value);
    });
    whole
}

/// The head of a sequence or a map: with a short count in it, or followed by one of two or four bytes.
fn head(count: usize, short: u8, long: u8) -> Vec<u8> {
    match (u8::try_from(count), u16::try_from(count)) {
        (Ok(count), _) if count < 16 => vec![short | count],
        (_, Ok(count)) => [&[long][..], &count.to_be_bytes()].concat(),
        _ => [&[long + 1][..], &u32::try_from(count).unwrap_or(u32::MAX).to_be_bytes()].concat(),
    }
}

/// The elements of an encoded sequence.
pub(super) fn split_sequence(whole: &[u8]) -> Result<Vec<&[u8]>, Failure> {
    split(whole, 1, 0x90, 0xDC)
}

/// The keys and values of an encoded map, in turns.
pub(super) fn split_map(whole: &[u8]) -> Result<Vec<&[u8]>, Failure> {
    split(whole, 2, 0x80, 0xDE)
}

fn split(whole: &[u8], each: usize, short: u8, long: u8) -> Result<Vec<&[u8]>, Failure> {
    let wrong = || Failure::Codec("the update left something that is not encoded as the container is".to_owned());
    let (count, mut rest) = match whole {
        [first, rest @ ..] if first & 0xF0 == short => (usize::from(first & 0x0F), rest),
        [first, a, b, rest @ ..] if *first == long => (usize::from(u16::from_be_bytes([*a, *b])), rest),
        [first, a, b, c, d, rest @ ..] if *first == long + 1 => {
            (usize::try_from(u32::from_be_bytes([*a, *b, *c, *d])).unwrap_or(usize::MAX), rest)
        }
        _ => return Err(wrong()),
    };
    let mut parts = Vec::new();
    for _ in 0..count.saturating_mul(each) {
        let mut decoder = rmp_serde::Deserializer::new(Cursor::new(rest));
        IgnoredAny::deserialize(&mut decoder).map_err(|_| wrong())?;
        let len = usize::try_from(decoder.position()).ok().filter(|len| *len > 0 && *len <= rest.len());
        let (part, after) = rest.split_at(len.ok_or_else(wrong)?);
        parts.push(part);
        rest = after;
    }
    if rest.is_empty() { Ok(parts) } else { Err(wrong()) }
}

/// An element as far as its place in the order goes. The order of the variants is that of values of different kinds,
/// which a list of one [`Sortable`] type has only for `None` and `Some`.
#[derive(Debug, PartialEq)]
pub(super) enum Place {
    Nothing,
    Flag(bool),
    Whole(i128),
    Number(f64),
    Text(Vec<u8>),
    Row(Vec<Place>),
}

impl Place {
    /// Where an encoded element stands.
    pub(super) fn of(item: &[u8]) -> Result<Self, Failure> {
        crate::codec::decode(item).map_err(|why| Failure::Codec(format!("an element has no order: {why}")))
    }

    pub(super) fn compare(&self, other: &Self) -> Ordering {
        use Place::*;
        match (self, other) {
            (Flag(a), Flag(b)) => a.cmp(b),
            (Whole(a), Whole(b)) => a.cmp(b),
            (Number(a), Number(b)) => a.total_cmp(b),
            (Text(a), Text(b)) => a.cmp(b),
            (Row(a), Row(b)) => {
                let first = a.iter().zip(b).map(|(a, b)| a.compare(b)).find(|order| order.is_ne());
                first.unwrap_or_else(|| a.len().cmp(&b.len()))
            }
            _ => self.kind().cmp(&other.kind()),
        }
    }

    fn kind(&self) -> u8 {
        match self {
            Place::Nothing => 0,
            Place::Flag(_) => 1,
            Place::Whole(_) => 2,
            Place::Number(_) => 3,
            Place::Text(_) => 4,
            Place::Row(_) => 5,
        }
    }
}

impl<'de> Deserialize<'de> for Place {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PlaceVisitor)
    }
}

struct PlaceVisitor;

impl<'de> Visitor<'de> for PlaceVisitor {
    type Value = Place;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, a text, a flag, nothing, or several of them")
    }

    fn visit_unit<E>(self) -> Result<Place, E> {
        Ok(Place::Nothing)
    }

    fn visit_none<E>(self) -> Result<Place, E> {
        Ok(Place::Nothing)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Place, D::Error> {
        Place::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Place, E> {
        Ok(Place::Flag(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Place, E> {
        Ok(Place::Whole(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Place, E> {
        Ok(Place::Whole(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Place, E> {
        Ok(Place::Number(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Place, E> {
        Ok(Place::Text(value.as_bytes().to_vec()))
    }

    fn visit_bytes<E>(self, value: &[u8]) -> Result<Place, E> {
        Ok(Place::Text(value.to_vec()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Place, A::Error> {
        let mut row = Vec::new();
        while let Some(item) = items.next_element()? {
            row.push(item);
        }
        Ok(Place::Row(row))
    }

    fn visit_map<A: MapAccess<'de>>(self, _items: A) -> Result<Place, A::Error> {
        Err(serde::de::Error::custom("it is a map"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded<T: serde::Serialize + ?Sized>(value: &T) -> Vec<u8> {
        let mut bytes = Vec::new();
        crate::manager::wire::encode_into(value, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn the_whole_is_encoded_as_the_codec_does_it() {
        for len in [0, 1, 15, 16, 255, 256, 65_535, 65_536] {
            let values: Vec<(u32, String)> = (0..len).map(|n| (n, n.to_string())).collect();
            let items: Vec<Vec<u8>> = values.iter().map(encoded).collect();
            let whole = sequence(items.iter().map(Vec::as_slice));
            assert!(whole == encoded(&values), "{len}");
            assert!(split_sequence(&whole).unwrap() == items, "{len}");

            let pairs: BTreeMap<u32, String> = values.into_iter().collect();
            let parts: Vec<Vec<u8>> = pairs.iter().flat_map(|(key, value)| [encoded(key), encoded(value)]).collect();
            let whole = map(pairs.len(), parts.chunks(2).map(|pair| (&*pair[0], &*pair[1])));
            assert!(whole == encoded(&pairs), "{len}");
            assert!(split_map(&whole).unwrap() == parts, "{len}");
        }
    }

    #[test]
    fn what_is_no_whole_is_a_failure() {
        let whole = encoded(&vec![Some("one"), None, Some("two")]);
        for len in 0..whole.len() {
            assert!(split_sequence(&whole[..len]).is_err());
        }
        assert!(split_sequence(&[whole.as_slice(), &[0]].concat()).is_err());
        assert!(split_map(&whole).is_err());
        // A count that says more than there is.
        assert!(split_sequence(&[0xDD, 0xFF, 0xFF, 0xFF, 0xFF, 1]).is_err());
    }

    #[test]
    fn places_are_in_the_order_of_their_values() {
        fn check<T: serde::Serialize + PartialOrd + Sortable>(sorted: &[T]) {
            for (a, one) in sorted.iter().enumerate() {
                for (b, two) in sorted.iter().enumerate() {
                    let (one, two) = (Place::of(&encoded(one)).unwrap(), Place::of(&encoded(two)).unwrap());
                    assert_eq!(one.compare(&two), a.cmp(&b), "{a} {b}");
                }
            }
        }
        check(&[i64::MIN, -129, -128, -1, 0, 1, 127, 128, 65_536, i64::MAX]);
        check(&[0, 1, u64::MAX - 1, u64::MAX]);
        check(&[f64::NEG_INFINITY, -1.5, 0.0, 0.25, 1e300, f64::INFINITY]);
        check(&["", "a", "a\0", "aa", "b", "ä"].map(str::to_owned));
        check(&['a', 'ä', '語']);
        check(&[None, Some(false), Some(true)]);
        check(&[(1, "b".to_owned()), (2, "a".to_owned()), (2, "b".to_owned())]);
        check(&[vec![], vec![1u8], vec![1, 0], vec![2]]);
        assert!(Place::of(&encoded(&BTreeMap::from([(1, 2)]))).is_err());
        assert!(Place::of(&[]).is_err());
    }
}
