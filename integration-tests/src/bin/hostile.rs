//! A worker that speaks the protocol by hand, and wrongly. How is in the variable `HOSTILE`.
//!
//! With `RINGS` it speaks through the rings in shared memory, otherwise through the socket, as if it could not map
//! them.
//!
//! If `MARKER` names a file, it is hostile once, makes that file, and is an honest worker from then on.
#![forbid(unsafe_code)]

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use integration_tests::tasks::double;
use polypool::Task;
use polypool_ipc::{Claims, RingReader, RingSocket, RingWriter};
use serde::{Deserialize, Serialize};

const READY: u8 = 16;
const STARTED: u8 = 17;
const VALUE: u8 = 18;
const PANICKED: u8 = 19;

/// The flag of a frame that comes with handles.
const LUGGAGE: u8 = 4;
const BLOCK: u8 = 8;

/// Neither MessagePack nor a frame.
const GARBAGE: [u8; 64] = [0xC1; 64];

#[derive(Deserialize)]
struct Hello {
    slots: usize,
}

#[derive(Serialize)]
struct Ready {
    protocol: u32,
    pid: u32,
    ring: bool,
    tasks: Vec<(String, String)>,
}

fn main() {
    // The linker keeps the tasks of a library that is used.
    assert_eq!(double(2), 4);
    if let Some(marker) = std::env::var_os("MARKER")
        && OpenOptions::new().write(true).create_new(true).open(marker).is_err()
    {
        polypool::init();
    }
    let mode = std::env::var("HOSTILE").unwrap_or_default();
    let channel = UnixStream::from(polypool_ipc::take_stdin().expect("a channel"));
    if std::env::var("POLYPOOL_WORKER").is_ok_and(|role| role.starts_with("forkserver")) {
        serve_as_fork_server(&mode, channel);
    } else {
        Worker::start(&mode, channel).work(&mode);
    }
}

struct Worker {
    channel: UnixStream,
    /// What its frames go through, if it isn't the channel.
    rings: Option<Rings>,
    claims: Claims,
    /// The descriptor of the claims, to write into past the rules.
    table: OwnedFd,
    _control: OwnedFd,
    /// Where handles go.
    luggage: UnixStream,
}

struct Rings {
    reader: RingReader,
    writer: RingWriter,
    /// To write into past the rules.
    memory: OwnedFd,
}

/// Where the words of each direction stand in the memory of rings, first that to the worker: the writer's position, the
/// reader's, and 128 bytes apart their marks.
const WORDS: [u64; 2] = [128, 640];

/// A call that came.
struct Call {
    slot: u32,
    sequence: u64,
    payload: Vec<u8>,
}

impl Worker {
    /// The handshake, unless it is the point of the mode to spoil it.
    fn start(mode: &str, mut channel: UnixStream) -> Self {
        let mut head = [0; HEADER];
        let (count, descriptors) = polypool_ipc::recv_with_fds(&channel, &mut head, 3).expect("a greeting");
        let [table, control, luggage] = <[_; 3]>::try_from(descriptors).expect("three descriptors");
        assert_eq!(count, HEADER, "the head of a greeting");
        let mut payload = vec![0; usize::from(head[0])];
        channel.read_exact(&mut payload).expect("a greeting");
        let hello: Hello = rmp_serde::from_slice(&payload).expect("a greeting");
        let (_, descriptors) = polypool_ipc::recv_with_fds(&channel, &mut [0], 2).expect("the rings, or none");
        let rings = descriptors.first().map(|memory| memory.try_clone().expect("a copy")).map(|memory| {
            let (reader, writer) = RingSocket::join(descriptors).expect("rings").split();
            Rings { reader, writer, memory }
        });
        let rings = rings.filter(|_| std::env::var_os("RINGS").is_some());
        let claims = Claims::open(&table, hello.slots).expect("claims");
        let copy = channel.try_clone().expect("a copy");
        let mut worker =
            Worker { channel: copy, rings: None, claims, table, _control: control, luggage: luggage.into() };
        match mode {
            "garbage first" => channel.write_all(&GARBAGE).expect("written"),
            "answer first" => worker.send(VALUE, 0, 1, &[1]),
            _ => {}
        }
        let ready = Ready {
            protocol: if mode == "other protocol" { 99 } else { 6 },
            pid: std::process::id(),
            ring: rings.is_some() || mode == "rings it was not given",
            tasks: vec![(<double as Task>::NAME.to_owned(), <double as Task>::SIGNATURE.to_owned())],
        };
        let ready = rmp_serde::to_vec_named(&ready).expect("encodable");
        let mut frame = header(u32::try_from(ready.len()).expect("a small payload"), READY, 0, 0).to_vec();
        frame.extend_from_slice(&ready);
        // Twice in one piece, so that no call comes in between.
        worker.raw(&frame.repeat(if mode == "ready twice" { 2 } else { 1 }));
        worker.rings = rings;
        worker
    }

    fn work(&mut self, mode: &str) {
        let mut calls = 0;
        loop {
            if mode == "deaf" {
                linger();
            }
            let Some(Call { slot, sequence, payload }) = self.receive() else { return };
            // An honest start, so that it is this worker's doing what becomes of the call.
            if mode != "started, exit" {
                let _ = self.claims.start(slot as usize, sequence);
            }
            calls += 1;
            match mode {
                "answers, then endless" | "answers, then drops" if calls <= 20 => self.answer(slot, sequence, &payload),
                "answers, then endless" => loop {
                    self.send(21, 0, 0, &[]);
                },
                "answers, then drops" => {
                    // The answer, byte by byte, and as many of them as it may have.
                    header(1 << 20, VALUE, slot, sequence).iter().for_each(|byte| self.raw(&[*byte]));
                    loop {
                        std::thread::sleep(std::time::Duration::from_micros(20));
                        self.raw(&[0]);
                    }
                }
                "truncated" => {
                    self.raw(&header(100, VALUE, slot, sequence));
                    self.raw(&GARBAGE[..10]);
                    return;
                }
                "huge" => self.raw(&header(u32::MAX, VALUE, slot, sequence)),
                "unknown kind" => self.send(99, slot, sequence, &[]),
                "call" => self.send(2, slot, sequence, &payload),
                "wrong call" => self.send(VALUE, slot, sequence + 1_000, &[1]),
                "twice" => {
                    self.answer(slot, sequence, &payload);
                    self.answer(slot, sequence, &payload);
                }
                "undecodable" => self.send(VALUE, slot, sequence, &GARBAGE),
                "undecodable report" => self.send(PANICKED, slot, sequence, &GARBAGE),
                "claims, answer" => {
                    self.spoil_claims();
                    self.answer(slot, sequence, &payload);
                }
                "claims, exit" => {
                    self.spoil_claims();
                    std::process::exit(7);
                }
                "claims, silence" => self.spoil_claims(),
                "started, exit" => {
                    self.send(STARTED, slot, sequence, &[]);
                    std::process::exit(7);
                }
                "handles unasked" => {
                    if sequence == 1 {
                        self.send_handles(&[253; 3]);
                    }
                    self.answer(slot, sequence, &payload);
                }
                "handles in the channel" => {
                    let null = self.table.try_clone().expect("a copy");
                    polypool_ipc::send_with_fds(&self.channel, &header(1, VALUE, slot, sequence), &[null.as_fd(); 253])
                        .expect("sent");
                    if self.rings.is_some() {
                        // There, all that was a bell.
                        self.raw(&header(1, VALUE, slot, sequence));
                    }
                    let argument: double = rmp_serde::from_slice(&payload).expect("an argument");
                    self.raw(&rmp_serde::to_vec(&double(argument.n)).expect("encodable"));
                }
                "handles missing" => self.laden(slot, sequence, 2),
                "fewer handles" => {
                    self.send_handles(&[1]);
                    self.laden(slot, sequence, 3);
                }
                "more handles" => {
                    self.send_handles(&[253]);
                    self.laden(slot, sequence, 1);
                }
                "4 billion handles" => {
                    self.send_handles(&[253; 3]);
                    self.laden(slot, sequence, u32::MAX);
                }
                "handles for another" => {
                    self.send_handles(&[2]);
                    self.laden(slot, sequence + 1_000, 2);
                }
                "no parcel" => {
                    self.luggage.write_all(&GARBAGE).expect("written");
                    self.laden(slot, sequence, 2);
                }
                // One, whatever the number of calls in the chunk.
                "one result of a chunk" => self.send(VALUE, slot, sequence, &results(&[7])),
                "a result too many" => self.send(VALUE, slot, sequence, &results(&[7, 8, 9, 10, 11])),
                "head far ahead" => self.position(1, 0, 1 << 40),
                "head far behind" => self.position(1, 0, u64::MAX),
                "ring of garbage" => {
                    // All of it is said to be an answer.
                    self.scribble();
                    self.position(1, 0, 4_096);
                }
                "tail far ahead" => self.position(0, 128, 1 << 40),
                "marks" => {
                    // Asleep and awake at random, for other numbers each time, and waiting for any room; and the answer
                    // all the same.
                    for round in 0..100_000_u64 {
                        for words in WORDS {
                            self.write(words + 256, &(round as u32).wrapping_mul(0x9E37_79B9).to_le_bytes());
                            self.write(words + 384, &(round as u32).wrapping_mul(0x85EB_CA6B).to_le_bytes());
                            self.write(words + 392, &round.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
                        }
                        if round.is_multiple_of(10_000) {
                            let _ = (&self.channel).write_all(&GARBAGE);
                        }
                    }
                    // In the end, all are asleep, for a number that they have not been woken for.
                    let asleep = 1_000_001 + 2 * u32::try_from(sequence).expect("few calls");
                    WORDS.iter().for_each(|words| self.write(words + 256, &asleep.to_le_bytes()));
                    self.answer(slot, sequence, &payload);
                }
                "bells" => {
                    // As many as the socket takes, of which the parent needs none.
                    for _ in 0..10_000 {
                        let _ = (&self.channel).write_all(&GARBAGE);
                    }
                    self.answer(slot, sequence, &payload);
                }
                "hangs up" => {
                    let _ = self.channel.shutdown(std::net::Shutdown::Both);
                    linger();
                }
                "hangs up behind its answer" => {
                    self.answer(slot, sequence, &payload);
                    let _ = self.channel.shutdown(std::net::Shutdown::Both);
                    linger();
                }
                "endless" => loop {
                    // Reports of progress without a call, as many as go in.
                    self.send(21, 0, 0, &[]);
                },
                "silence" => self.send(STARTED, slot, sequence, &[]),
                "half" => {
                    // As much as it may be, of which less comes.
                    self.raw(&header(2 << 20, VALUE, slot, sequence));
                    self.raw(&vec![0; 1 << 20]);
                    return;
                }
                "half a block" => {
                    self.block(slot, sequence, 1 << 20, &payload);
                    self.raw(&vec![0; 1 << 19]);
                    return;
                }
                "more block than frame" => {
                    let frame = [&counted(BLOCK, 100, slot, sequence)[..], &93_u32.to_le_bytes(), &[0; 4]].concat();
                    self.raw(&frame);
                }
                "block for nobody" => {
                    self.block(slot, sequence, 1 << 20, &payload);
                    self.raw(&vec![0; 1 << 20]);
                }
                _ => self.answer(slot, sequence, &payload),
            }
        }
    }

    /// An answer that has its payload, and announces a block that is to follow.
    fn block(&mut self, slot: u32, sequence: u64, block: u32, payload: &[u8]) {
        let length = 8 + u32::try_from(payload.len()).expect("a small payload") + block;
        let head = counted(BLOCK, length, slot, sequence);
        self.raw(&[&head[..], &block.to_le_bytes(), &[0; 4], payload].concat());
    }

    fn receive(&mut self) -> Option<Call> {
        let mut head = [0; HEADER];
        self.read(&mut head)?;
        let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let mut payload = vec![0; number(0) as usize];
        self.read(&mut payload)?;
        let sequence = u64::from(number(16)) | u64::from(number(20)) << 32;
        (head[4] == 2).then_some(Call { slot: number(8), sequence, payload })
    }

    fn read(&mut self, mut room: &mut [u8]) -> Option<()> {
        let Some(rings) = &mut self.rings else { return self.channel.read_exact(room).ok() };
        while !room.is_empty() {
            let count = rings.reader.read(&self.channel, room, None).ok().filter(|count| *count > 0)?;
            room = &mut room[count..];
        }
        Some(())
    }

    /// Writes a position of the ring to the worker (0) or from it (1), and rings.
    fn position(&self, ring: usize, place: u64, position: u64) {
        self.write(WORDS[ring] + place, &position.to_le_bytes());
        let _ = (&self.channel).write_all(b"+");
    }

    /// Garbage into both rings.
    fn scribble(&self) {
        for at in 0..256 {
            self.write(4_096 + at * 4_096, &GARBAGE.repeat(64));
        }
    }

    /// Writes past all rules.
    fn write(&self, at: u64, bytes: &[u8]) {
        let memory = &self.rings.as_ref().expect("RINGS is set").memory;
        // Behind the end of smaller rings there is nothing to write into.
        let _ = rustix::io::pwrite(memory, bytes, at);
    }

    /// The right answer.
    fn answer(&mut self, slot: u32, sequence: u64, payload: &[u8]) {
        let argument: double = rmp_serde::from_slice(payload).expect("an argument");
        self.claims.finish(slot as usize, sequence);
        self.send(VALUE, slot, sequence, &rmp_serde::to_vec(&double(argument.n)).expect("encodable"));
    }

    fn spoil_claims(&self) {
        for at in 0..64 {
            rustix::io::pwrite(&self.table, &GARBAGE, at * 64).expect("written");
        }
    }

    /// So many descriptors, each time with one byte, as an honest worker would send them.
    fn send_handles(&self, parcels: &[usize]) {
        for &count in parcels {
            polypool_ipc::send_with_fds(&self.luggage, b"+", &vec![self.table.as_fd(); count]).expect("sent");
        }
    }

    /// An answer that says that handles come with it.
    fn laden(&mut self, slot: u32, sequence: u64, handles: u32) {
        let mut frame = header(5, VALUE, slot, sequence).to_vec();
        frame[5] = LUGGAGE;
        frame.extend_from_slice(&handles.to_le_bytes());
        frame.push(1);
        self.raw(&frame);
    }

    fn send(&mut self, kind: u8, slot: u32, sequence: u64, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("a small payload");
        let mut frame = header(length, kind, slot, sequence).to_vec();
        frame.extend_from_slice(payload);
        self.raw(&frame);
    }

    fn raw(&mut self, bytes: &[u8]) {
        // The parent may have had enough of it.
        let _ = match &mut self.rings {
            Some(rings) => rings.writer.write(&self.channel, &[bytes], None),
            None => self.channel.write_all(bytes),
        };
    }
}

/// An answer to a chunk.
fn results(values: &[u64]) -> Vec<u8> {
    [vec![0], rmp_serde::to_vec(values).expect("encodable")].concat()
}

/// The length of the head of a frame.
const HEADER: usize = 32;

fn header(length: u32, kind: u8, slot: u32, sequence: u64) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[0..4].copy_from_slice(&length.to_le_bytes());
    bytes[4] = kind;
    bytes[8..12].copy_from_slice(&slot.to_le_bytes());
    bytes[16..24].copy_from_slice(&sequence.to_le_bytes());
    bytes
}

/// The header of an answer with numbers before its payload.
fn counted(flags: u8, length: u32, slot: u32, sequence: u64) -> [u8; HEADER] {
    let mut bytes = header(length, VALUE, slot, sequence);
    bytes[5] = flags;
    bytes
}

/// Answers each request to fork wrongly.
fn serve_as_fork_server(mode: &str, mut channel: UnixStream) {
    let mut byte = [0];
    while let Ok((1, _descriptors)) = polypool_ipc::recv_with_fds(channel.as_fd(), &mut byte, 2) {
        let written = match mode {
            "server without a process" => channel.write_all(&message(1, 1, 0)),
            "server that fails" => channel.write_all(&message(2, 0, 0)),
            "server that is silent" => Ok(()),
            _ => channel.write_all(&GARBAGE),
        };
        if written.is_err() {
            return;
        }
    }
}

fn message(kind: i32, pid: i32, number: i32) -> [u8; 12] {
    let mut bytes = [0; 12];
    for (place, number) in bytes.chunks_exact_mut(4).zip([kind, pid, number]) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    bytes
}

fn linger() -> ! {
    loop {
        std::thread::park();
    }
}
