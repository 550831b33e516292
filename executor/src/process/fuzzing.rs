//! What reads bytes of the process on the other side of the border, for fuzz targets: compiled with `--cfg fuzzing`
//! only.
//!
//! Each function takes any bytes, and is right when it returns.

use bytes::BytesMut;
use polypool_ipc::Luggage;

use super::wire::{self, Header, Hello, Kind, Ready};
use crate::codec::{self, Encoded, Message};
use crate::context::Progress;
use crate::error::{CodecError, PanicReport};
use crate::task::{self, Execution, Reply, Shape, TASKS, Task};

/// Frames out of a stream of bytes, and what is decoded of them without more knowledge, by the worker or the
/// supervisor. The first byte says how long the pieces are in which the others come.
pub fn frames(data: &[u8]) {
    const LIMIT: u64 = 1 << 12;
    let Some((step, data)) = data.split_first() else { return };
    let (mut read, mut pending) = (BytesMut::new(), None);
    let mut pieces = data.chunks(usize::from(*step) + 1);
    loop {
        match wire::take_whole(&mut read, &mut pending, LIMIT) {
            Ok(Some((header, message))) => frame(&header, &message.bytes),
            Ok(None) => match pieces.next() {
                Some(mut piece) => {
                    if let Some((block, left)) = pending.as_mut().map(wire::Pending::block) {
                        let (first, rest) = piece.split_at(piece.len().min(left));
                        block.extend_from_slice(first);
                        piece = rest;
                    }
                    read.extend_from_slice(piece);
                }
                None => return,
            },
            Err(what) => return assert!(!what.is_empty()),
        }
    }
}

fn frame(header: &Header, payload: &[u8]) {
    assert!(payload.len() <= header.length as usize);
    match header.kind {
        Kind::Hello => drop(codec::decode::<Hello>(payload)),
        Kind::Ready => drop(codec::decode::<Ready>(payload)),
        Kind::Panicked => drop(codec::decode::<PanicReport>(payload).map(|report| report.to_string())),
        Kind::Codec => drop(codec::decode::<CodecError>(payload).map(|error| error.to_string())),
        Kind::Progress => drop(codec::decode::<Progress>(payload)),
        Kind::Name => drop(String::from_utf8_lossy(payload)),
        Kind::Call | Kind::Value | Kind::Exit | Kind::Started => {}
    }
}

/// A call of one of the program's tasks, as a worker carries it out: the first two bytes say of which one, and whether
/// it is a chunk.
pub fn calls(data: &[u8], luggage: &Luggage) {
    let Some(([task, shape], payload)) = data.split_first_chunk() else { return };
    let Some(task) = TASKS.get(usize::from(*task) % TASKS.len().max(1)) else { return };
    let shape = if shape & 1 == 0 { Shape::One } else { Shape::Chunk };
    match (task.execute)(message(payload, luggage), shape) {
        Execution::Done(Reply::Value(message)) => assert!(message.luggage.len() <= codec::MOST_HANDLES),
        Execution::Done(Reply::Panicked(report)) => panic!("the task panicked{report}"),
        Execution::Done(Reply::Codec(error)) => drop(error.to_string()),
        Execution::Future(future) => drop(future),
    }
}

/// An answer to a call of a task, as the supervisor's side decodes it: of one, and of a chunk.
pub fn answers<T: Task>(data: &[u8], luggage: &Luggage) {
    let message = message(data, luggage);
    drop(task::decode_output::<T>(message.clone()));
    drop(task::decode_outputs::<T>(&message));
}

fn message(payload: &[u8], luggage: &Luggage) -> Message {
    Message { bytes: Encoded::copy_of(payload), luggage: luggage.clone(), block: None }
}
