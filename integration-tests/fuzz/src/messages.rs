//! A peer that sends what it likes: frames, handshakes, requests, handles, calls and answers.
#![no_main]

mod manager;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use polypool_ipc::{
    Array, AtomicArray, AtomicValue, Barrier, BoundedSemaphore, ByteQueue, Claims, Condvar, Connection, Event, Fd,
    FrameReceiver, FrameSender, JoinableQueue, Luggage, Mutex, Once, OnceValue, Queue, ReentrantMutex, RwLock,
    Semaphore, SharedList, SharedMemory, StreamEnd, Value, pack, unpack,
};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((&reader, data)) = input.split_first() else { return };
    match reader % 14 {
        0 => polypool::fuzzing::frames(data),
        1 => with_luggage(data, |luggage, data| polypool::fuzzing::calls(data, luggage)),
        2 => with_luggage(data, |luggage, data| {
            polypool::fuzzing::answers::<everything>(data, luggage);
            polypool::fuzzing::answers::<handles>(data, luggage);
        }),
        3 => polypool::manager::fuzzing::frames(data),
        4 => polypool::manager::fuzzing::handshake(data),
        5 => polypool::manager::fuzzing::requests(data),
        6 => manager::serve(data),
        7 => with_luggage(data, decode_handle::<true>),
        8 => with_luggage(data, decode_handle::<false>),
        9 => another_handle(data),
        10 => ring(data),
        11 => polypool::manager::fuzzing::ring(data),
        12 => with_luggage(data, join_ring),
        _ => claims(data),
    }
});

/// Something of all that serde knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Shape {
    Nothing,
    Number(i64),
    Text { text: String, letter: char },
    Many(Vec<Shape>),
    Bytes(#[serde(with = "serde_bytes_like")] Vec<u8>),
}

/// A byte buffer as one block, as `serde_bytes` does it.
mod serde_bytes_like {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        Vec::deserialize(deserializer)
    }
}

type Everything = (Option<Shape>, BTreeMap<String, Vec<f32>>, Result<u128, String>, [i8; 3], Vec<u8>);

#[polypool::task]
fn everything(
    shape: Option<Shape>,
    map: BTreeMap<String, Vec<f32>>,
    result: Result<u128, String>,
    array: [i8; 3],
    bytes: Vec<u8>,
) -> Everything {
    (shape, map, result, array, bytes)
}

#[polypool::task]
fn numbers(a: u8, b: i64, c: f64, d: bool, e: char, f: (), text: String) -> (u8, i64, f64, bool, char, (), String) {
    (a, b, c, d, e, f, text)
}

#[polypool::task]
fn blocks(bytes: Vec<u8>) -> Vec<u8> {
    bytes
}

#[polypool::task]
fn handles(fd: Fd, counter: Option<AtomicValue<u64>>, more: Vec<Fd>) -> (Fd, Option<AtomicValue<u64>>, Vec<Fd>) {
    (fd, counter, more)
}

/// Descriptors of memory of the wrong kind or size, sealed or not, empty, of a file or a pipe, as the first bytes say;
/// and the rest of them.
fn with_luggage(data: &[u8], run: impl FnOnce(&Luggage, &[u8])) {
    let Some((&count, mut data)) = data.split_first() else { return };
    let mut fds = Vec::new();
    for _ in 0..count % 6 {
        let Some(([form, size], rest)) = data.split_first_chunk() else { break };
        data = rest;
        let len = match size % 8 {
            0 => 0,
            1 => 40,
            2 => 64,
            3 => 200,
            4 => 4_096,
            5 => 8_192,
            6 => 64 * 4_097,
            _ => 1 << 40,
        };
        let content = &data[..data.len().min(usize::from(size / 8))];
        fds.extend(memory(*form, len, content));
        data = &data[content.len()..];
    }
    run(&Luggage::new(fds), data);
}

fn memory(form: u8, len: u64, content: &[u8]) -> Option<OwnedFd> {
    Some(match form % 8 {
        0 => File::open("/dev/null").ok()?.into(),
        1 => std::io::pipe().ok()?.0.into(),
        2 => std::os::unix::net::UnixStream::pair().ok()?.0.into(),
        form => {
            let memory = File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).ok()?);
            ftruncate(&memory, len).ok()?;
            let at = if form == 3 { 0 } else { 64 };
            if len >= at + content.len() as u64 {
                memory.write_all_at(content, at).ok()?;
            }
            let head = match form {
                4 => b"pp-obj-1mutx",
                5 => b"pp-list1\0\0\0\0",
                6 => b"pp-board\0\0\0\0",
                7 if content.len() % 2 == 1 => b"pp-sock1\0\x10\0\0",
                _ => b"pp-atom\x08\x01\0\0\0",
            };
            if form > 3 && len >= 64 {
                memory.write_all_at(head, 0).ok()?;
            }
            let seals = match content.first().map_or(0, |byte| byte % 8) {
                1 => SealFlags::empty(),
                2 => SealFlags::SHRINK,
                3 => SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL | SealFlags::WRITE,
                _ => SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
            };
            fcntl_add_seals(&memory, seals).ok()?;
            memory.into()
        }
    })
}

/// Decodes one kind of handle, and does with it what can't wait.
fn decode<H: DeserializeOwned>(luggage: &Luggage, bytes: &[u8], json: bool) -> bool {
    let handle: Option<H> =
        unpack(luggage, || if json { serde_json::from_slice(bytes).ok() } else { rmp_serde::from_slice(bytes).ok() });
    handle.is_some()
}

macro_rules! kinds {
    ($($number:literal => $kind:ty),+ $(,)?) => {
        const KINDS: u8 = 0 $(+ { let _: u8 = $number; 1 })+;

        fn decode_kind(kind: u8, luggage: &Luggage, bytes: &[u8], json: bool) -> bool {
            match kind % KINDS {
                $($number => decode::<$kind>(luggage, bytes, json),)+
                _ => unreachable!(),
            }
        }
    };
}

kinds! {
    0 => Mutex<[u8; 12]>, 1 => ReentrantMutex<u64>, 2 => RwLock<u64>, 3 => Semaphore, 4 => BoundedSemaphore, 5 => Event,
    6 => Condvar, 7 => Barrier, 8 => Once, 9 => OnceValue<u64>, 10 => Value<u64>, 11 => Value<[u8; 100]>, 12 => Array<u32>,
    13 => Array<[u8; 12]>, 14 => AtomicValue<u64>, 15 => AtomicArray<bool>, 16 => SharedMemory, 17 => SharedList,
    18 => Queue<String>, 19 => JoinableQueue<String>, 20 => ByteQueue, 21 => FrameSender, 22 => FrameReceiver,
    23 => StreamEnd, 24 => Connection<u64>, 25 => Fd, 26 => (Fd, Vec<Option<Fd>>), 27 => BTreeMap<String, Mutex<u64>>,
}

fn decode_handle<const JSON: bool>(luggage: &Luggage, data: &[u8]) {
    let Some((&kind, bytes)) = data.split_first() else { return };
    decode_kind(kind, luggage, bytes, JSON);
    if !JSON {
        return;
    }
    // As honest peers write them.
    for bytes in ["[0,1]", "0", "[0,null]", "[[0,1,2,3,1,0],100]", "[0,1,2,3,2,1]"] {
        decode_kind(kind, luggage, bytes.as_bytes(), true);
    }
}

/// A true handle of one kind, with a lie in its memory, taken for one of another kind.
fn another_handle(data: &[u8]) {
    let Some(([made, taken, low, high], lie)) = data.split_first_chunk() else { return };
    let (bytes, luggage) = pack(|| match made % 8 {
        0 => serde_json::to_vec(&Mutex::new([0_u8; 12]).expect("made")),
        1 => serde_json::to_vec(&Array::<u32>::new(7).expect("made")),
        2 => serde_json::to_vec(&polypool_ipc::QueueOptions::new().memory(4_096).joinable::<String>().expect("made")),
        3 => serde_json::to_vec(&Value::new(7_u64).expect("made")),
        4 => serde_json::to_vec(&AtomicArray::from_slice(&[true, false]).expect("made")),
        5 => serde_json::to_vec(&SharedList::new([1.into(), "two".into()]).expect("made")),
        6 => serde_json::to_vec(&polypool_ipc::StreamOptions::new().capacity(4_096).one_way().expect("made").1),
        _ => serde_json::to_vec(&Condvar::new().expect("made")),
    });
    let bytes = bytes.expect("a handle in JSON");
    let own = match made % 8 {
        0 => 0,
        1 => 12,
        2 => 19,
        3 => 10,
        4 => 15,
        5 => 17,
        6 => 22,
        _ => 6,
    };
    assert!(decode_kind(own, &luggage, &bytes, true), "a true handle is refused");
    let memory = File::from(luggage.fds().next().and_then(|fd| fd.try_clone_to_owned().ok()).expect("its memory"));
    let at = u64::from(u16::from_le_bytes([*low, *high]));
    if at + lie.len() as u64 <= memory.metadata().map_or(0, |data| data.len()) {
        memory.write_all_at(lie, at).expect("written");
    }
    decode_kind(*taken, &luggage, &bytes, true);
    decode_kind(own, &luggage, &bytes, true);
}

/// What stands in the ring of a queue.
fn ring(data: &[u8]) {
    let Some((&[h0, h1, h2, h3, t0, t1, t2, t3, wide], data)) = data.split_first_chunk() else { return };
    let word = |bytes: [u8; 4]| {
        let word = u64::from(u32::from_le_bytes(bytes));
        // The count and the place in 16 bits each, or near the end of theirs.
        let (count, at) = (word >> 16, word & 0xffff);
        if wide & 1 == 0 { count << 32 | at } else { (0xffff_0000 | count) << 32 | 0xffff_0000 | at }
    };
    let mut ring = vec![0; 8 << (wide / 2 % 8)];
    let count = ring.len().min(data.len());
    ring[..count].copy_from_slice(&data[..count]);
    if let Ok(records) = polypool_ipc::__walk_ring(word([h0, h1, h2, h3]), word([t0, t1, t2, t3]), &ring) {
        assert!(records as usize <= ring.len() / 8, "more records than fit");
    }
}

/// What a server sends as the memory of a connection.
fn join_ring(luggage: &Luggage, data: &[u8]) {
    let fds: Vec<OwnedFd> = luggage.fds().filter_map(|fd| fd.try_clone_to_owned().ok()).collect();
    let Ok(ring) = polypool_ipc::RingSocket::join(fds) else { return };
    let Ok((socket, _peer)) = std::os::unix::net::UnixStream::pair() else { return };
    let (mut reader, mut writer) = ring.split();
    let now = Some(std::time::Instant::now());
    let _ = reader.read(&socket, &mut [0; 100], now);
    let _ = writer.write(&socket, &[data, data], now);
}

/// The table of what a worker has begun, with any words.
fn claims(data: &[u8]) {
    let Some(([slots, form, size], content)) = data.split_first_chunk() else { return };
    let Some(memory) = memory(*form, u64::from(*size) * 32, content) else { return };
    if let Ok(claims) = Claims::open(memory, usize::from(*slots)) {
        for (slot, sequence) in (0..usize::from(*slots)).zip(1..) {
            let _ = (claims.state(slot, sequence), claims.start(slot, sequence), claims.state(slot, sequence));
            claims.finish(slot, sequence);
        }
    }
}
