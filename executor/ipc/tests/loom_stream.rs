//! The protocol by which the two sides of a stream put each other to sleep and wake each other, under every
//! interleaving and every outcome that the memory orderings allow.
//!
//! The file with the protocol is included here as it is; loom's atomics take the place of the processor's, and a
//! doorbell that stays rung until it is heard that of the socket. Nobody "looks again after a while" here, so a wake-up
//! that gets lost is a deadlock, which loom reports.
#![cfg(any(target_os = "linux", target_os = "android"))]

use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

#[path = "../src/channel/stream/protocol.rs"]
mod protocol;

/// A socket: bytes stay in it until they are taken.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Bell {
    fn ring(&self) {
        *self.rung.lock().unwrap() = true;
        self.changed.notify_one();
    }

    fn hear(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.changed.wait(rung).unwrap();
        }
        *rung = false;
    }
}

/// One direction, with room for `ROOM` items.
#[derive(Default)]
struct Ring {
    head: AtomicU64,
    tail: AtomicU64,
    reader_sleep: AtomicU32,
    writer_sleep: AtomicU32,
    wanted: AtomicU64,
    data: [AtomicU32; 2],
    at_reader: Bell,
    at_writer: Bell,
}

impl Ring {
    /// Sends, as `Outgoing::send` does.
    fn send(&self, value: u32, capacity: u64, rung: &protocol::Rung) {
        let head = self.head.load(Ordering::Relaxed);
        loop {
            let tail = self.tail.load(Ordering::Acquire);
            if head - tail < capacity {
                break;
            }
            self.wanted.store(tail + 1, Ordering::Relaxed);
            let sleep = protocol::lie_down(&self.writer_sleep);
            if self.tail.load(Ordering::Acquire) <= tail {
                self.at_writer.hear();
            }
            protocol::get_up(&self.writer_sleep, sleep);
        }
        self.data[(head % 2) as usize].store(value, Ordering::Relaxed);
        protocol::publish(&self.head, head + 1);
        self.wake_reader(rung);
    }

    /// Sends where there is room, and waits a little before it rings, as `RingWriter::put` does.
    fn send_and_hesitate(&self, value: u32, rung: &protocol::Rung) {
        let head = self.head.load(Ordering::Relaxed);
        self.data[(head % 2) as usize].store(value, Ordering::Relaxed);
        protocol::publish(&self.head, head + 1);
        if let Some(sleep) = protocol::sleeper(&self.reader_sleep)
            && rung.is_new(sleep)
            && !protocol::is_over(&self.reader_sleep, sleep)
        {
            self.at_reader.ring();
        }
    }

    /// Says that it sleeps, gets up to look, and only then sleeps in earnest: as a caller does that takes the place of
    /// one who rests.
    fn look_and_recv(&self, rung: &protocol::Rung) -> u32 {
        let tail = self.tail.load(Ordering::Relaxed);
        let sleep = protocol::lie_down(&self.reader_sleep);
        if self.head.load(Ordering::Acquire) == tail {
            protocol::get_up(&self.reader_sleep, sleep);
        }
        self.recv(rung)
    }

    fn wake_reader(&self, rung: &protocol::Rung) {
        if let Some(sleep) = protocol::sleeper(&self.reader_sleep)
            && rung.is_new(sleep)
        {
            self.at_reader.ring();
        }
    }

    /// Receives, as `FrameReceiver::recv_within` does.
    fn recv(&self, rung: &protocol::Rung) -> u32 {
        let tail = self.tail.load(Ordering::Relaxed);
        while self.head.load(Ordering::Acquire) == tail {
            let sleep = protocol::lie_down(&self.reader_sleep);
            if self.head.load(Ordering::Acquire) == tail {
                self.at_reader.hear();
            }
            protocol::get_up(&self.reader_sleep, sleep);
        }
        let value = self.data[(tail % 2) as usize].load(Ordering::Relaxed);
        protocol::publish(&self.tail, tail + 1);
        if let Some(sleep) = protocol::sleeper(&self.writer_sleep)
            && tail + 1 >= self.wanted.load(Ordering::Relaxed)
            && rung.is_new(sleep)
        {
            self.at_writer.ring();
        }
        value
    }
}

fn model(check: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(check);
}

/// Runs two threads, each of which has rung for nobody yet.
fn writer_and_reader(write: fn(&Ring, &protocol::Rung), read: fn(&Ring, &protocol::Rung)) {
    model(move || {
        let ring = Arc::new(Ring::default());
        let writer = thread::spawn({
            let ring = ring.clone();
            move || write(&ring, &protocol::Rung::default())
        });
        read(&ring, &protocol::Rung::default());
        writer.join().unwrap();
    });
}

#[test]
fn a_reader_that_lies_down_is_woken_for_each_item() {
    writer_and_reader(
        |ring, rung| {
            ring.send(7, 2, rung);
            ring.send(8, 2, rung);
        },
        |ring, rung| {
            assert_eq!(ring.recv(rung), 7);
            assert_eq!(ring.recv(rung), 8);
        },
    );
}

#[test]
fn a_writer_that_lies_down_is_woken_when_there_is_room() {
    writer_and_reader(
        |ring, rung| {
            for value in 1..=3 {
                ring.send(value, 1, rung);
            }
        },
        |ring, rung| {
            for value in 1..=3 {
                assert_eq!(ring.recv(rung), value);
            }
        },
    );
}

#[test]
fn a_writer_that_hesitates_wakes_those_who_lie_down_again() {
    writer_and_reader(
        |ring, rung| {
            ring.send_and_hesitate(7, rung);
            ring.send_and_hesitate(8, rung);
        },
        |ring, rung| {
            assert_eq!(ring.look_and_recv(rung), 7);
            assert_eq!(ring.look_and_recv(rung), 8);
        },
    );
}

#[test]
fn frames_that_are_fed_are_found_after_one_bell() {
    writer_and_reader(
        |ring, rung| {
            for value in 1..=2_u32 {
                let head = ring.head.load(Ordering::Relaxed);
                ring.data[(head % 2) as usize].store(value, Ordering::Relaxed);
                protocol::publish(&ring.head, head + 1);
            }
            ring.wake_reader(rung);
        },
        |ring, rung| {
            assert_eq!(ring.recv(rung), 1);
            assert_eq!(ring.recv(rung), 2);
        },
    );
}

#[test]
fn two_processes_that_write_in_turn_both_wake_the_reader() {
    model(|| {
        let ring = Arc::new(Ring::default());
        // Each has its own memory of the sleeps it has rung for; the lock of their side is a loom mutex here.
        let turn = Arc::new(Mutex::new(()));
        let writers: Vec<_> = (0..2)
            .map(|_| {
                let (ring, turn) = (ring.clone(), turn.clone());
                thread::spawn(move || {
                    let _turn = turn.lock().unwrap();
                    ring.send(5, 2, &protocol::Rung::default());
                })
            })
            .collect();
        let rung = protocol::Rung::default();
        assert_eq!(ring.recv(&rung) + ring.recv(&rung), 10);
        writers.into_iter().for_each(|writer| writer.join().unwrap());
    });
}
