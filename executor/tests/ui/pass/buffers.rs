//! Byte buffers are encoded as one block; other vectors, element by element.
#![forbid(unsafe_code)]
#![deny(warnings)]

use std::fmt::Debug;

use polypool::Task;
use serde::{Deserialize, Serialize};

#[polypool::task]
fn reversed(mut data: Vec<u8>, more: Option<std::vec::Vec<u8>>, numbers: Vec<u16>) -> Vec<u8> {
    data.extend(more.unwrap_or_default());
    data.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    data.reverse();
    data
}

#[polypool::task]
fn found(index: usize) -> Option<Vec<u8>> {
    (index < 3).then(|| vec![0; index])
}

#[polypool::task]
fn read(path: String) -> Result<Vec<u8>, String> {
    if path.is_empty() { Err(path) } else { Ok(path.into_bytes()) }
}

#[polypool::task]
fn numbers(count: u8) -> Result<Vec<u16>, String> {
    Ok((0..count.into()).collect())
}

/// A result, encoded as its task says.
struct Output<T: Task>(T::Output);

impl<T: Task> Serialize for Output<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        T::serialize_output(&self.0, serializer)
    }
}

impl<'de, T: Task> Deserialize<'de> for Output<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize_output(deserializer).map(Output)
    }
}

/// MessagePack tells bytes from arrays, and takes one byte more for each byte above 127 of an array.
#[track_caller]
fn output_of<T: Task>(output: T::Output) -> usize
where
    T::Output: Clone + PartialEq + Debug,
{
    let encoded = rmp_serde::to_vec(&Output::<T>(output.clone())).unwrap();
    assert_eq!(rmp_serde::from_slice::<Output<T>>(&encoded).unwrap().0, output);
    encoded.len()
}

fn main() {
    let call = reversed { data: vec![200; 1_000], more: Some(vec![200; 1_000]), numbers: vec![7] };
    let encoded = rmp_serde::to_vec(&call).unwrap();
    assert!(encoded.len() < 2_020, "{} bytes", encoded.len());
    let decoded: reversed = rmp_serde::from_slice(&encoded).unwrap();
    assert_eq!((decoded.data, decoded.more, decoded.numbers), (call.data, call.more, call.numbers));

    assert_eq!(output_of::<reversed>(vec![200; 1_000]), 1_003);
    assert_eq!(output_of::<found>(Some(vec![200; 1_000])), 1_003);
    assert_eq!(output_of::<found>(None), 1);
    let plain = rmp_serde::to_vec(&Ok::<_, String>(serde_bytes::ByteBuf::from(vec![200; 1_000]))).unwrap();
    assert_eq!(output_of::<read>(Ok(vec![200; 1_000])), plain.len());
    assert_eq!(output_of::<read>(Err("no".to_owned())), rmp_serde::to_vec(&Err::<(), _>("no")).unwrap().len());
    output_of::<numbers>(Ok(vec![200; 1_000]));

    assert_eq!(reversed(vec![1, 2], None, Vec::new()), [2, 1]);
    assert_eq!((found(3), read(String::new()), numbers(1)), (None, Err(String::new()), Ok(vec![0])));
}
