//! A socket whose bytes go through shared memory: nothing is lost, everybody wakes, ends are ends, and lies are errors.
#![cfg(any(target_os = "linux", target_os = "android"))]

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use polypool_ipc::{RingCloser, RingReader, RingSocket, RingWriter};

/// Runs something that might hang, and fails if it does.
fn within<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> T {
    let (tell, told) = mpsc::channel();
    let thread = thread::spawn(move || {
        let result = what();
        let _ = tell.send(());
        result
    });
    match told.recv_timeout(Duration::from_secs(120)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("it hangs"),
        _ => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
    }
}

struct End {
    socket: UnixStream,
    reader: RingReader,
    writer: RingWriter,
    closer: RingCloser,
}

impl End {
    fn new(socket: UnixStream, ring: RingSocket) -> Self {
        let closer = ring.closer();
        let (reader, writer) = ring.split();
        End { socket, reader, writer, closer }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.write(&self.socket, &[bytes], None)
    }

    fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; 100];
        let count = self.reader.read(&self.socket, &mut bytes, None)?;
        bytes.truncate(count);
        Ok(bytes)
    }
}

/// Two ends, and the memory between them.
fn pair(capacity: usize) -> (End, End, std::fs::File) {
    let (here, there) = UnixStream::pair().unwrap();
    let (ours, luggage) = RingSocket::create(capacity).unwrap();
    let memory = std::fs::File::from(luggage[0].try_clone().unwrap());
    let theirs = RingSocket::join(luggage.into()).unwrap();
    (End::new(here, ours), End::new(there, theirs), memory)
}

fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

const TOTAL: usize = 3_000_000;

fn byte(at: usize) -> u8 {
    (at ^ at >> 8 ^ at >> 16) as u8
}

fn send_all(writer: &mut RingWriter, socket: &UnixStream, seed: u64) {
    let mut next = random(seed);
    let mut at = 0;
    while at < TOTAL {
        let most = [10, 300, 5_000, 40_000][next() as usize % 4];
        let bytes: Vec<u8> = (at..TOTAL.min(at + next() as usize % most)).map(byte).collect();
        let (one, two) = bytes.split_at(next() as usize % (bytes.len() + 1));
        writer.write(socket, &[one, &[], two], None).unwrap();
        at += bytes.len();
    }
}

fn receive_all(reader: &mut RingReader, socket: &UnixStream, seed: u64) {
    let mut next = random(seed);
    let mut at = 0;
    let mut room = vec![0; 20_000];
    while at < TOTAL {
        let most = 1 + next() as usize % [8, 300, 20_000][next() as usize % 3];
        // Now and then with a deadline, which may pass.
        let until = (next().is_multiple_of(4)).then(|| Instant::now() + Duration::from_micros(next() % 200));
        match reader.read(socket, &mut room[..most], until) {
            Ok(count) => {
                assert!(count > 0, "it ended early");
                assert!(room[..count].iter().enumerate().all(|(place, found)| *found == byte(at + place)), "at {at}");
                at += count;
            }
            Err(error) => assert!(until.is_some() && error.kind() == ErrorKind::TimedOut, "{error}"),
        }
    }
    assert_eq!(at, TOTAL);
}

#[test]
fn bytes_come_out_as_they_went_in_both_ways_at_once() {
    for capacity in [4_096, 65_536] {
        let (one, two, _) = pair(capacity);
        within(move || {
            thread::scope(|scope| {
                for (end, seed) in [(one, 1), (two, 2)] {
                    let End { socket, mut reader, mut writer, closer } = end;
                    let receives = socket.try_clone().unwrap();
                    scope.spawn(move || {
                        receive_all(&mut reader, &receives, seed);
                        reader
                    });
                    scope.spawn(move || {
                        send_all(&mut writer, &socket, seed + 10);
                        (writer, socket, closer)
                    });
                }
            });
        });
    }
}

#[test]
fn no_wake_up_is_lost_between_two_who_answer_each_other() {
    let (mut one, mut two, _) = pair(4_096);
    within(move || {
        let answers = thread::spawn(move || {
            loop {
                let question = two.read().unwrap();
                if question.is_empty() {
                    return;
                }
                two.write(&question).unwrap();
            }
        });
        for round in 0..30_000_u32 {
            one.write(&round.to_le_bytes()).unwrap();
            assert_eq!(one.read().unwrap(), round.to_le_bytes());
            if round % 1_000 == 0 {
                // So that the other one has gone to sleep.
                thread::sleep(Duration::from_millis(1));
            }
        }
        drop(one);
        answers.join().unwrap();
    });
}

#[test]
fn what_was_sent_comes_before_the_end_and_the_end_stays() {
    let (mut one, mut two, _) = pair(4_096);
    one.write(b"last words").unwrap();
    drop(one);
    within(move || {
        assert!(two.reader.has_buffered());
        assert_eq!(two.read().unwrap(), b"last words");
        for _ in 0..3 {
            assert_eq!(two.read().unwrap(), b"");
        }
    });
}

#[test]
fn a_sender_learns_that_a_peer_is_gone_that_slept_or_went_in_good_order() {
    // Gone in good order, without ever having slept.
    let (mut one, two, _) = pair(4_096);
    drop(two);
    assert!(one.write(b"?").is_err());
    // Gone with a full ring between them, while the sender waits.
    let (mut one, mut two, _) = pair(4_096);
    within(move || {
        let sends = thread::spawn(move || one.write(&[0; 100_000]).unwrap_err());
        assert!(!two.read().unwrap().is_empty());
        drop(two);
        let error = sends.join().unwrap();
        assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
    });
}

#[test]
fn waiting_for_room_ends_in_time_or_when_closed() {
    let (mut one, mut two, _) = pair(4_096);
    within(move || {
        let until = Instant::now() + Duration::from_millis(20);
        let error = one.writer.write(&one.socket, &[&[1; 100_000]], Some(until)).unwrap_err();
        assert!(error.kind() == ErrorKind::TimedOut && Instant::now() >= until, "{error}");

        let closer = one.closer;
        let (mut writer, socket) = (one.writer, one.socket);
        let (begun, begins) = mpsc::channel();
        let sends = thread::spawn(move || {
            begun.send(()).unwrap();
            let error = writer.write(&socket, &[&[1; 100_000]], None).unwrap_err();
            (error, writer, socket)
        });
        begins.recv().unwrap();
        closer.close();
        closer.close();
        assert_eq!(sends.join().unwrap().0.kind(), ErrorKind::BrokenPipe);
        assert!(two.read().unwrap().iter().all(|byte| *byte == 1));
    });
}

#[test]
fn impossible_positions_are_errors_on_both_sides() {
    // The words of the ring that the first end writes to, and of the other one.
    for (head, tail) in [(128, 256), (640, 768)] {
        for lie in [4_097, u64::MAX, 1 << 63] {
            let (mut one, mut two, memory) = pair(4_096);
            if head == 640 {
                std::mem::swap(&mut one, &mut two);
            }
            memory.write_all_at(&u64::to_ne_bytes(lie), head).unwrap();
            assert_eq!(two.read().unwrap_err().kind(), ErrorKind::InvalidData, "{lie}");
            assert!(two.reader.has_buffered(), "an error is there to be fetched");
            // Nor can it have read what was never written, nor less than fits between.
            memory.write_all_at(&u64::to_ne_bytes(lie.min(1 << 63)), tail).unwrap();
            assert_eq!(one.write(b"x").unwrap_err().kind(), ErrorKind::InvalidData, "{lie}");
        }
    }
}

#[test]
fn only_the_memory_of_a_connection_is_joined() {
    let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    assert!(RingSocket::join(Vec::new()).is_err());
    assert!(RingSocket::join(vec![null(), null()]).is_err());
    let (_ours, [memory, room]) = RingSocket::create(4_096).unwrap();
    let copy = || memory.as_fd().try_clone_to_owned().unwrap();
    assert!(RingSocket::join(vec![copy()]).is_err());
    assert!(RingSocket::join(vec![copy(), null(), null()]).is_err());
    let file = std::fs::File::from(copy());
    for (place, lie) in [(8, 8_192_u64), (8, 0), (8, u64::MAX), (8, 4_095), (0, 7)] {
        let mut before = [0; 8];
        file.read_exact_at(&mut before, place).unwrap();
        file.write_all_at(&lie.to_ne_bytes(), place).unwrap();
        assert_eq!(RingSocket::join(vec![copy(), null()]).unwrap_err().kind(), ErrorKind::InvalidData);
        file.write_all_at(&before, place).unwrap();
    }
    assert!(RingSocket::join(vec![copy(), room]).is_ok());
}

#[test]
fn who_waits_in_vain_sleeps_once() {
    let (mut one, _two, _) = pair(4_096);
    within(move || {
        for _ in 0..50 {
            let before = one.reader.sleeps();
            let until = Some(Instant::now() + Duration::from_millis(2));
            let error = one.reader.read(&one.socket, &mut [0], until).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TimedOut);
            assert!(one.reader.sleeps().wrapping_sub(before) <= 2);
        }
    });
}

/// Waits until a socket is readable, and takes the bells out of it.
fn hear(socket: &UnixStream) {
    use rustix::event::{PollFd, PollFlags, poll};
    poll(&mut [PollFd::new(socket, PollFlags::IN)], None).unwrap();
    let mut bells = [0; 64];
    rustix::net::recv(socket, &mut bells[..], rustix::net::RecvFlags::DONTWAIT).unwrap();
}

#[test]
fn who_never_blocks_and_rests_at_the_bells_misses_nothing() {
    const ROUNDS: usize = 40_000;
    let (mut one, mut two, _) = pair(4_096);
    within(move || {
        let replies = thread::spawn(move || {
            let mut room = BytesMut::with_capacity(4_096);
            let mut count = 0;
            let bell = two.writer.bell().unwrap();
            // Each byte comes back, without blocking calls; now and then more than there is room for.
            while count < ROUNDS * 33 {
                while two.reader.try_read(&mut room).unwrap() == 0 {
                    if two.reader.rest() {
                        hear(&two.socket);
                    }
                }
                count += room.len();
                while !room.is_empty() {
                    match two.writer.try_write(&two.socket, &room).unwrap() {
                        0 if two.writer.rest() => hear(&bell),
                        sent => room.advance(sent),
                    }
                }
                room.reserve(4_096);
            }
            two
        });
        let (socket, mut reader) = (one.socket.try_clone().unwrap(), one.reader);
        let sends = thread::spawn(move || {
            for round in 0..ROUNDS {
                one.writer.write(&one.socket, &[&[round as u8; 33]], None).unwrap();
                if round.is_multiple_of(64) {
                    thread::yield_now();
                }
            }
            (one.writer, one.socket)
        });
        for round in 0..ROUNDS {
            let mut bytes = [0; 33];
            let mut have = 0;
            while have < 33 {
                have += reader.read(&socket, &mut bytes[have..], None).unwrap();
            }
            assert_eq!(bytes, [round as u8; 33]);
        }
        (replies.join().unwrap(), sends.join().unwrap())
    });
}

#[test]
fn a_rest_that_is_given_up_can_be_taken_up_again() {
    let (mut one, mut two, memory) = pair(4_096);
    let mut room = BytesMut::with_capacity(100);
    let mark = |at| {
        let mut word = [0; 4];
        memory.read_exact_at(&mut word, at).unwrap();
        u32::from_le_bytes(word)
    };
    assert!(two.reader.rest() && two.reader.rest(), "nothing is there");
    one.write(b"something").unwrap();
    assert!(!two.reader.rest(), "nobody rings for what is there");
    assert_eq!(two.reader.buffered().unwrap(), 9);
    assert_eq!(two.reader.try_read(&mut room).unwrap(), 9);
    assert_eq!(two.reader.try_read(&mut room).unwrap(), 0);
    hear(&two.socket);

    // A peer that was held up rings for what was read long ago, and never again for this rest; so the next one has
    // another mark.
    assert!(two.reader.rest());
    let before = mark(384);
    assert_eq!(two.reader.try_read(&mut room).unwrap(), 0);
    assert!(two.reader.rest());
    assert!(before % 2 == 1 && mark(384) % 2 == 1 && mark(384) != before, "{before}, {}", mark(384));
    // The same for who waits for room.
    assert_eq!(two.writer.try_write(&two.socket, &[7; 5_000]).unwrap(), 4_096);
    assert_eq!(two.writer.try_write(&two.socket, &[7; 904]).unwrap(), 0);
    assert!(two.writer.rest());
    let before = mark(1_024);
    assert_eq!(two.writer.try_write(&two.socket, &[7; 904]).unwrap(), 0);
    assert!(two.writer.rest());
    assert!(before % 2 == 1 && mark(1_024) % 2 == 1 && mark(1_024) != before, "{before}, {}", mark(1_024));
    within(move || {
        let writes = thread::spawn(move || one.write(b"more").map(|()| one));
        hear(&two.socket);
        assert_eq!(two.reader.try_read(&mut room).unwrap(), 4);
        drop(writes.join());
    });
}

#[test]
fn who_never_blocks_is_told_of_lies() {
    let (mut one, mut two, memory) = pair(4_096);
    let mut room = BytesMut::with_capacity(100);
    // The position of the writer, and that of the reader.
    for (at, position) in [(128, 5_000_u64), (256, 5_000), (128, u64::MAX), (256, u64::MAX - 5_000)] {
        for ring in [0, 512] {
            memory.write_all_at(&position.to_le_bytes(), at + ring).unwrap();
        }
        let error = match at {
            128 => two.reader.try_read(&mut room).unwrap_err(),
            _ => one.writer.try_write(&one.socket, b"something").unwrap_err(),
        };
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{at} {position}");
        for ring in [0, 512] {
            memory.write_all_at(&0_u64.to_le_bytes(), at + ring).unwrap();
        }
    }
}

#[test]
fn what_a_forked_child_drops_stays_its_parents() {
    let (one, mut two, _memory) = pair(4_096);
    let End { socket, mut reader, writer, closer } = one;
    // Awake, so the peer rings for nothing.
    two.write(b"first").unwrap();
    let mut room = BytesMut::with_capacity(100);
    assert_eq!(reader.try_read(&mut room).unwrap(), 5);
    let sleeps = reader.sleeps();
    let mut copies = Some((reader, writer));
    // SAFETY: the child drops its copies, which allocates nothing, and ends.
    let child = match unsafe { libc::fork() } {
        0 => {
            drop(copies.take());
            // SAFETY: ends the child without anything that its parent would do at its end.
            unsafe { libc::_exit(0) }
        }
        child => child,
    };
    let mut status = 0;
    // SAFETY: the status is ours.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0);
    let (reader, writer) = copies.unwrap();
    assert_eq!(reader.sleeps(), sleeps, "nobody has lain down");
    two.write(b"second").unwrap();
    let mut poll = [rustix::event::PollFd::new(&socket, rustix::event::PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut poll, Some(&now)).unwrap(), 0, "it has rung for somebody who is awake");
    let mut one = End { socket, reader, writer, closer };
    assert_eq!(one.read().unwrap(), b"second");
    one.write(b"back").unwrap();
    assert_eq!(two.read().unwrap(), b"back");
}
