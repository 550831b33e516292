//! Pipes: what Python's `multiprocessing.Pipe` promises, and what it doesn't: whole messages from several threads,
//! death in the middle, futures.
#![cfg(any(target_os = "linux", target_os = "android"))]

use std::fs::File;
use std::future::Future;
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use polypool_ipc::{
    Connection, Fd, Frame, Luggage, PipeError, PipeReceiver, PipeSender, StreamEnd, StreamOptions, channel, pack, pipe,
    pipe_between, stream_pair, unpack,
};
use serde_json::{Value as Json, json};

#[path = "common/family.rs"]
mod family;
use family::{LIMIT, Peer, child};

polypool_ipc::before_main!(roles);

fn roles() {
    family::run_roles(&[
        ("recipe", recipe),
        ("both_ways", both_ways),
        ("holds", holds),
        ("sends_for_ever", sends_for_ever),
        ("receives_for_ever", receives_for_ever),
        ("writes_into_a_file", writes_into_a_file),
        ("takes_and_drops", takes_and_drops),
    ]);
    // A lost wake-up is to fail, and not to hang.
    thread::spawn(|| {
        thread::sleep(5 * LIMIT);
        eprintln!("the tests of pipes are still running after {:?}", 5 * LIMIT);
        std::process::abort();
    });
}

/// Numbers that look random and are the same each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn fill(&mut self, bytes: &mut Vec<u8>, len: usize) {
        bytes.clear();
        bytes.extend((0..len.div_ceil(4)).flat_map(|_| (self.next() as u32).to_le_bytes()));
        bytes.truncate(len);
    }
}

fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// Runs a future on this thread, which sleeps in between. Fails after the limit.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let until = Instant::now() + LIMIT;
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        assert!(Instant::now() < until, "a future is not ready after {LIMIT:?}");
        thread::park_timeout(Duration::from_secs(1));
    }
}

/// Polls once.
fn poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// Waits for what another thread or process is about to do.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < until, "{what}: not after {LIMIT:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

// What Python's pipes do.

fn recipe(parent: &Peer) {
    let end: Connection<Json> = parent.recv();
    end.send(&json!([42, null, "hello"])).unwrap();
    end.send_bytes(b"thank you").unwrap();
}

#[test]
fn a_child_sends_a_list_and_then_bytes() {
    let (here, there) = pipe::<Json>().unwrap();
    let child = child("recipe", &there);
    drop(there);
    assert_eq!(here.recv().unwrap(), json!([42, null, "hello"]));
    assert_eq!(here.recv_bytes(100).unwrap(), b"thank you");
    assert!(matches!(here.recv(), Err(PipeError::Closed)));
    child.join();
}

#[test]
fn messages_arrive_in_order_and_both_ways() {
    let (client, server) = pipe_between::<u32, String>().unwrap();
    for n in 0..100 {
        client.send(&n).unwrap();
    }
    for n in 0..100 {
        assert_eq!(server.recv().unwrap(), n);
        server.send(&n.to_string()).unwrap();
    }
    for n in 0..100 {
        assert_eq!(client.recv().unwrap(), n.to_string());
    }
}

#[test]
fn when_the_sender_is_dropped_the_receiver_gets_what_is_left_and_then_the_end() {
    let (sender, receiver) = channel::<u32>().unwrap();
    let second = sender.clone();
    sender.send(&1).unwrap();
    drop(sender);
    second.send(&2).unwrap();
    drop(second);
    assert_eq!(receiver.recv().unwrap(), 1);
    assert!(receiver.poll(LIMIT).unwrap());
    assert_eq!(receiver.try_recv().unwrap(), 2);
    assert!(matches!(receiver.try_recv(), Err(PipeError::Closed)));
    assert!(matches!(receiver.recv(), Err(PipeError::Closed)));
    assert!(receiver.poll(Duration::ZERO).unwrap(), "the end of file can be received");
}

#[test]
fn when_the_receiver_is_dropped_the_next_send_fails() {
    let (sender, receiver) = channel::<u32>().unwrap();
    sender.send(&1).unwrap();
    assert!(!sender.is_closed());
    drop(receiver);
    assert!(sender.is_closed());
    assert!(matches!(sender.send(&2), Err(PipeError::Closed)));
    assert!(matches!(sender.try_send_bytes(b"x"), Err(PipeError::Closed)));
}

#[test]
fn a_thread_that_waits_for_a_message_learns_of_the_end() {
    let (sender, receiver) = channel::<u32>().unwrap();
    let waiting = thread::spawn(move || receiver.recv());
    drop(sender);
    assert!(matches!(waiting.join().unwrap(), Err(PipeError::Closed)));
}

#[test]
fn a_thread_that_waits_for_room_learns_of_the_end() {
    let (sender, receiver) = StreamOptions::new().capacity(4096).channel::<u32>().unwrap();
    let sending = thread::spawn(move || {
        loop {
            if let Err(error) = sender.send_bytes(&[0; 300]) {
                return error;
            }
        }
    });
    assert!(receiver.poll(LIMIT).unwrap());
    drop(receiver);
    assert!(matches!(sending.join().unwrap(), PipeError::Closed));
}

#[test]
fn too_long_a_message_is_refused_with_both_lengths_and_the_next_one_comes() {
    let (here, there) = StreamOptions::new().capacity(64 << 10).pipe::<u32, u32>().unwrap();
    let sender = thread::spawn(move || {
        there.send_bytes(&[1; 11]).unwrap();
        there.send_bytes(&[2; 10]).unwrap();
        // One that is longer than the ring, and goes in pieces.
        there.send_bytes(&vec![3; 300_000]).unwrap();
        there.send_bytes(&[4; 3]).unwrap();
        there
    });
    assert!(matches!(here.recv_bytes(10), Err(PipeError::TooLong { len: 11, max: 10 })));
    assert_eq!(here.recv_bytes(10).unwrap(), [2; 10]);
    let error = here.recv_bytes(1000).unwrap_err();
    assert_eq!(error.to_string(), "a message of 300000 bytes arrived, but at most 1000 were to be received");
    assert_eq!(here.recv_bytes(10).unwrap(), [4; 3]);

    let there = sender.join().unwrap();
    here.set_max_len(2);
    there.send(&1_000_000).unwrap();
    there.send(&1).unwrap();
    assert!(matches!(here.recv(), Err(PipeError::TooLong { len: 5, max: 2 })));
    assert_eq!(here.recv().unwrap(), 1);
}

#[test]
fn a_poll_waits_as_long_as_it_is_told() {
    let (sender, receiver) = channel::<u32>().unwrap();
    assert!(!receiver.poll(Duration::ZERO).unwrap());
    let start = Instant::now();
    assert!(!receiver.poll(Duration::from_millis(20)).unwrap());
    assert!(start.elapsed() >= Duration::from_millis(20));
    assert!(matches!(receiver.recv_timeout(Duration::from_millis(5)), Err(PipeError::TimedOut)));
    assert!(matches!(receiver.try_recv(), Err(PipeError::Empty)));
    assert!(matches!(receiver.recv_bytes_timeout(9, Duration::from_millis(5)), Err(PipeError::TimedOut)));
    assert!(matches!(receiver.try_recv_bytes(9), Err(PipeError::Empty)));

    sender.send(&5).unwrap();
    assert!(receiver.poll(Duration::ZERO).unwrap());
    assert!(receiver.poll(LIMIT).unwrap(), "a poll takes nothing");
    assert_eq!(receiver.recv_timeout(LIMIT).unwrap(), 5);
    assert!(!receiver.poll(Duration::ZERO).unwrap());
}

#[test]
fn bytes_and_values_are_not_taken_for_each_other() {
    let (here, there) = pipe::<u32>().unwrap();
    here.send(&1).unwrap();
    here.send_bytes(b"two").unwrap();
    assert!(matches!(there.recv_bytes(9), Err(PipeError::WrongForm { .. })));
    assert_eq!(there.recv().unwrap(), 1);
    let error = there.recv().unwrap_err();
    assert_eq!(error.to_string(), "the next message is bytes, and a value was to be received");
    assert_eq!(there.recv_bytes(9).unwrap(), b"two");
}

#[test]
fn what_is_no_value_of_the_type_fails_alone() {
    let (here, there) = pipe_between::<Json, u32>().unwrap();
    let (sender, _) = here.split();
    let (bytes, luggage) = pack(|| serde_json::to_vec(&there).unwrap());
    // The same end, with another type.
    let there: Connection<u32, String> = unpack(&luggage, || serde_json::from_slice(&bytes)).unwrap();
    sender.send(&json!([1, 2])).unwrap();
    sender.send(&json!("a word")).unwrap();
    assert!(matches!(there.recv(), Err(PipeError::Decode(_))));
    assert_eq!(there.recv().unwrap(), "a word");
}

#[test]
fn a_value_that_cannot_be_encoded_is_not_sent() {
    struct Refuses;
    impl serde::Serialize for Refuses {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("not me"))
        }
    }
    let (sender, receiver) = channel::<Refuses>().unwrap();
    let error = sender.send(&Refuses).unwrap_err();
    assert_eq!(error.to_string(), "a value can't be sent: not me");
    assert!(!receiver.poll(Duration::ZERO).unwrap());
}

#[test]
fn nothing_is_a_message_too() {
    let (sender, receiver) = channel::<()>().unwrap();
    sender.send_bytes(&[]).unwrap();
    sender.send(&()).unwrap();
    assert!(receiver.recv_bytes(0).unwrap().is_empty());
    receiver.recv().unwrap();
}

#[test]
fn a_full_pipe_says_so_and_takes_more_when_there_is_room() {
    let (sender, receiver) = StreamOptions::new().capacity(4096).channel::<u32>().unwrap();
    let mut sent = 0;
    loop {
        match sender.try_send_bytes(&[0; 100]) {
            Ok(()) => sent += 1,
            Err(PipeError::Full) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(sent, 4096 / 128);
    assert!(matches!(sender.send_bytes_timeout(&[0; 100], Duration::from_millis(5)), Err(PipeError::TimedOut)));
    assert!(matches!(sender.try_send_bytes(&[0; 5000]), Err(PipeError::Full)), "never");
    for _ in 0..sent {
        assert_eq!(receiver.recv_bytes(100).unwrap().len(), 100);
    }
    assert!(matches!(receiver.try_recv(), Err(PipeError::Empty)));
    sender.try_send_bytes(&[0; 100]).unwrap();
    // In several pieces, and yet at once.
    sender.try_send_bytes(&[7; 3000]).unwrap();
    assert_eq!(receiver.recv_bytes(100).unwrap().len(), 100);
    assert_eq!(receiver.recv_bytes(3000).unwrap(), [7; 3000]);
}

#[test]
fn a_send_that_gives_up_in_the_middle_has_sent_nothing() {
    let (sender, receiver) = StreamOptions::new().capacity(4096).channel::<u32>().unwrap();
    assert!(matches!(sender.send_bytes_timeout(&[1; 9000], Duration::from_millis(5)), Err(PipeError::TimedOut)));
    let sending = thread::spawn(move || sender.send_bytes(&[2; 9000]).map(|()| sender));
    assert_eq!(receiver.recv_bytes(9000).unwrap(), [2; 9000]);
    let sender = sending.join().unwrap().unwrap();

    // And when nothing follows, the end tells the truth.
    assert!(matches!(sender.send_bytes_timeout(&[1; 9000], Duration::from_millis(5)), Err(PipeError::TimedOut)));
    drop(sender);
    assert!(matches!(receiver.recv(), Err(PipeError::WrongForm { .. })));
    assert!(matches!(receiver.recv_bytes(9000), Err(PipeError::Truncated { len: 9000, .. })));
    assert!(matches!(receiver.recv_bytes(9000), Err(PipeError::Closed)));
}

#[test]
fn a_receive_that_gives_up_in_the_middle_goes_on_later() {
    let (sender, receiver) = StreamOptions::new().capacity(4096).channel::<u32>().unwrap();
    let gate = std::sync::mpsc::channel::<()>();
    let sending = thread::spawn(move || {
        // The first pieces fit, the rest has to wait.
        let data: Vec<u8> = (0..20_000_u32).map(|n| n as u8).collect();
        let result = sender.send_bytes(&data);
        gate.1.recv().unwrap_err();
        result
    });
    eventually("a beginning", || receiver.poll(LIMIT).unwrap());
    // Far too short for all of it, most of the time; what matters is that the rest is never lost.
    let bytes = loop {
        match receiver.try_recv_bytes(20_000) {
            Ok(bytes) => break bytes,
            Err(PipeError::Empty) => thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    };
    assert!(bytes.iter().enumerate().all(|(n, byte)| n as u8 == *byte) && bytes.len() == 20_000);
    drop(gate.0);
    sending.join().unwrap().unwrap();
}

#[test]
fn close_ends_the_pipe_for_all_clones_and_wakes_who_waits() {
    let (here, there) = pipe::<u32>().unwrap();
    let clone = here.clone();
    let waiting = thread::spawn(move || clone.recv());
    there.send_bytes(b"x").unwrap_or_else(|error| panic!("{error}"));
    let far = there.clone();
    let peer = thread::spawn(move || far.recv());
    here.close();
    assert!(matches!(waiting.join().unwrap(), Err(PipeError::Closed | PipeError::WrongForm { .. })));
    assert!(matches!(peer.join().unwrap(), Err(PipeError::Closed)));
    assert!(matches!(here.send(&1), Err(PipeError::Closed)));
    assert!(matches!(here.recv(), Err(PipeError::Closed)));
    assert!(matches!(there.send(&1), Err(PipeError::Closed)));
    assert!(matches!(there.recv(), Err(PipeError::Closed)));
    assert!(there.is_closed());
}

// Handles that travel.

#[test]
fn an_end_that_is_lost_on_its_way_is_gone() {
    let (sender, receiver) = channel::<u32>().unwrap();
    let (carrier, other) = channel::<PipeSender<u32>>().unwrap();
    carrier.send(&sender).unwrap();
    sender.send(&1).unwrap();
    drop(sender);
    assert_eq!(receiver.recv().unwrap(), 1);
    assert!(matches!(receiver.recv_timeout(Duration::from_millis(5)), Err(PipeError::TimedOut)), "still on its way");
    let waiting = thread::spawn(move || receiver.recv());
    drop((carrier, other));
    assert!(matches!(waiting.join().unwrap(), Err(PipeError::Closed)));
}

#[test]
fn an_end_that_has_arrived_works() {
    let (carrier, other) = channel::<Connection<u32>>().unwrap();
    let (here, there) = pipe::<u32>().unwrap();
    carrier.send(&there).unwrap();
    drop(there);
    let there = other.recv().unwrap();
    here.send(&3).unwrap();
    assert_eq!(there.recv().unwrap(), 3);
    there.send(&4).unwrap();
    assert_eq!(here.recv().unwrap(), 4);
    drop(there);
    assert!(matches!(here.recv(), Err(PipeError::Closed)));
}

fn writes_into_a_file(parent: &Peer) {
    let end: Connection<(String, Fd)> = parent.recv();
    let (text, fd) = end.recv().unwrap();
    File::from(fd.into_inner().unwrap()).write_all(text.as_bytes()).unwrap();
    end.send_bytes(b"done").unwrap();
}

#[test]
fn a_descriptor_in_a_message_arrives_with_it() {
    let (here, there) = pipe::<(String, Fd)>().unwrap();
    let child = child("writes_into_a_file", &there);
    let mut file = tempfile();
    here.send(&("written by the child".to_string(), Fd::new(file.try_clone().unwrap().into()))).unwrap();
    assert_eq!(here.recv_bytes(9).unwrap(), b"done");
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "written by the child");
    child.join();
}

/// A file without a name.
fn tempfile() -> File {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    File::from(open(std::env::temp_dir(), flags, Mode::RUSR | Mode::WUSR).unwrap())
}

#[test]
fn many_descriptors_arrive_with_their_own_messages() {
    let null = || OwnedFd::from(File::open("/dev/null").unwrap());
    let (here, there) = stream_pair().unwrap();
    for count in [0, 1, 252, 253, 254, 300, 1] {
        let luggage = Luggage::new((0..count).map(|_| null()).collect());
        here.sender().send(&Frame::new(&[&[count as u8]]).kind(9).luggage(&luggage)).unwrap();
    }
    let mut bytes = Vec::new();
    for count in [0, 1, 252] {
        let received = there.receiver().recv(&mut bytes).unwrap();
        assert_eq!((received.luggage.len(), received.kind, &bytes[..]), (count, 9, &[count as u8][..]));
    }
    // One whose luggage nobody wants doesn't spoil the next one's.
    there.receiver().set_max_len(0);
    assert!(matches!(there.receiver().recv(&mut bytes), Err(PipeError::TooLong { .. })));
    there.receiver().set_max_len(10);
    for count in [254, 300, 1] {
        assert_eq!(there.receiver().recv(&mut bytes).unwrap().luggage.len(), count);
    }
}

// Death.

fn holds(parent: &Peer) {
    let _end: Connection<u32> = parent.recv();
    parent.send("ready");
    let () = parent.recv();
}

#[test]
fn the_end_of_file_comes_when_the_last_holder_is_killed() {
    let (here, there) = pipe::<u32>().unwrap();
    let mut children = [child("holds", &there), child("holds", &there)];
    children.iter().for_each(|child| child.expect("ready"));
    drop(there);
    children[0].kill();
    assert!(!here.poll(Duration::from_millis(20)).unwrap(), "one is still there");
    here.send(&1).unwrap();
    let waiting = thread::spawn(move || (here.recv(), here));
    children[1].kill();
    let (result, here) = waiting.join().unwrap();
    assert!(matches!(result, Err(PipeError::Closed)));
    assert!(here.is_closed());
    eventually("a send that fails", || matches!(here.send(&1), Err(PipeError::Closed)));
}

fn sends_for_ever(parent: &Peer) {
    let (end, len): (Connection<u32>, usize) = parent.recv();
    let data = vec![9; len];
    while end.send_bytes(&data).is_ok() {}
}

#[test]
fn a_sender_killed_in_the_middle_of_a_message_leaves_no_half_of_it() {
    // Longer than the ring, so the child is always in the middle of one, and we have taken some of it.
    let (here, there) = StreamOptions::new().capacity(16 << 10).pipe::<u32, u32>().unwrap();
    let mut other = child("sends_for_ever", &(&there, 10_000_000));
    drop(there);
    assert!(matches!(here.receiver().try_recv_bytes(usize::MAX), Err(PipeError::Empty)));
    assert!(here.poll(LIMIT).unwrap());
    assert!(matches!(here.receiver().try_recv_bytes(usize::MAX), Err(PipeError::Empty)));
    other.kill();
    match here.recv_bytes(usize::MAX) {
        Err(PipeError::Truncated { got, len: 10_000_000 }) if got < 10_000_000 && got > 0 => {}
        other => panic!("{:?}", other.map(|bytes| bytes.len())),
    }
    assert!(matches!(here.recv_bytes(usize::MAX), Err(PipeError::Closed)));
}

#[test]
fn a_sender_killed_in_the_middle_of_a_message_does_not_harm_the_others() {
    let (here, there) = StreamOptions::new().capacity(16 << 10).pipe::<u32, u32>().unwrap();
    let mut other = child("sends_for_ever", &(&there, 10_000_000));
    assert!(here.poll(LIMIT).unwrap());
    other.kill();
    let sending = thread::spawn(move || there.send(&77));
    assert!(matches!(here.receiver().recv_bytes(usize::MAX), Err(PipeError::Truncated { .. })));
    assert_eq!(here.recv().unwrap(), 77);
    sending.join().unwrap().unwrap();
}

fn receives_for_ever(parent: &Peer) {
    let end: Connection<u32> = parent.recv();
    while end.recv_bytes(usize::MAX).is_ok() {}
}

#[test]
fn a_receiver_killed_in_the_middle_of_a_message_loses_no_other() {
    let (here, there) = StreamOptions::new().capacity(16 << 10).pipe::<u32, u32>().unwrap();
    let mut other = child("receives_for_ever", &there);
    let sending = thread::spawn(move || {
        here.send_bytes(&vec![1; 30_000_000]).unwrap();
        for n in 0..10 {
            here.send(&n).unwrap();
        }
        here
    });
    // It is in the middle, or hasn't begun, or has taken the long one and waits at the first value, which stays.
    eventually("a beginning", || there.receiver().try_recv().is_err());
    other.kill();
    let first = loop {
        match there.recv() {
            Ok(n) => break n,
            // It was killed before it had begun.
            Err(PipeError::WrongForm { .. }) => drop(there.recv_bytes(usize::MAX).unwrap()),
            Err(error) => panic!("{error}"),
        }
    };
    assert!(first <= 1, "the child may have refused the first number, not more");
    for n in first + 1..10 {
        assert_eq!(there.recv().unwrap(), n);
    }
    sending.join().unwrap();
}

#[test]
fn a_writer_that_waits_for_room_learns_that_the_reader_was_killed() {
    let (here, there) = StreamOptions::new().capacity(4096).pipe::<u32, u32>().unwrap();
    let mut other = child("holds", &there);
    other.expect("ready");
    drop(there);
    let sending = thread::spawn(move || here.send_bytes(&[0; 100_000]));
    other.kill();
    assert!(matches!(sending.join().unwrap(), Err(PipeError::Closed)));
}

// Much.

fn both_ways(parent: &Peer) {
    let (end, rounds): (StreamEnd, u32) = parent.recv();
    exchange(&end, rounds, 2, 1);
}

/// Sends `rounds` frames of random length and content, and checks that the other side sends what it should.
fn exchange(end: &StreamEnd, rounds: u32, mine: u64, its: u64) {
    let length = |random: &mut Random| match random.next() % 1_000 {
        0 => (random.next() % 200_000) as usize,
        1..20 => (random.next() % 5_000) as usize,
        _ => (random.next() % 64) as usize,
    };
    thread::scope(|scope| {
        scope.spawn(move || {
            let (mut random, mut bytes) = (Random(mine), Vec::new());
            for round in 0..rounds {
                let len = length(&mut random);
                random.fill(&mut bytes, len);
                let cut = len / 3;
                let sum = checksum(&bytes).to_le_bytes();
                let frame = &[&sum[..], &bytes[..cut], &bytes[cut..]];
                if round % 3 == 0 {
                    end.sender().send(&Frame::new(frame).kind(round as u8)).unwrap();
                } else {
                    end.sender().feed(&Frame::new(frame).kind(round as u8)).unwrap();
                }
            }
            end.sender().flush().unwrap();
        });
        let (mut random, mut bytes, mut expected) = (Random(its), Vec::new(), Vec::new());
        for round in 0..rounds {
            let received = end.receiver().recv(&mut bytes).unwrap();
            assert_eq!(received.kind, round as u8);
            let len = length(&mut random);
            random.fill(&mut expected, len);
            assert_eq!(bytes[..8], checksum(&expected).to_le_bytes(), "frame {round}");
            assert!(bytes[8..] == expected, "frame {round} of {len} bytes");
        }
    });
}

#[test]
fn a_hundred_thousand_frames_of_all_lengths_both_ways_at_once() {
    let (here, there) = StreamOptions::new().capacity(64 << 10).pair().unwrap();
    let child = child("both_ways", &(&there, 100_000));
    drop(there);
    exchange(&here, 100_000, 1, 2);
    child.join();
}

#[test]
fn every_length_at_every_place_of_the_ring() {
    // 4 KiB, so that headers, contents and pieces begin and end at all places around the wrap.
    let (here, there) = StreamOptions::new().capacity(4096).pair().unwrap();
    let mut random = Random(3);
    let (mut sent, mut received) = (Vec::new(), Vec::new());
    for round in 0..30_000 {
        let len = (random.next() % if round % 50 == 0 { 3_000 } else { 600 }) as usize;
        random.fill(&mut sent, len);
        here.sender().try_send(&Frame::new(&[&sent])).unwrap();
        there.receiver().try_recv(&mut received).unwrap();
        assert_eq!(sent, received);
    }
    assert!(!there.receiver().has_buffered());
}

#[test]
fn messages_of_several_threads_stay_whole() {
    let (sender, receiver) = StreamOptions::new().capacity(8192).channel::<Vec<u32>>().unwrap();
    const EACH: u32 = 2_000;
    thread::scope(|scope| {
        for who in 0..3_u32 {
            let sender = sender.clone();
            scope.spawn(move || {
                for n in 0..EACH {
                    // Some of these go in pieces.
                    sender.send(&vec![who << 16 | n; (n % 900) as usize + 1]).unwrap();
                }
            });
        }
        drop(sender);
        let seen = AtomicUsize::new(0);
        thread::scope(|inner| {
            for _ in 0..2 {
                let (receiver, seen): (PipeReceiver<Vec<u32>>, _) = (receiver.clone(), &seen);
                inner.spawn(move || {
                    for message in receiver.iter() {
                        let message = message.unwrap();
                        let n = message[0] & 0xffff;
                        assert!(message.iter().all(|word| *word == message[0]));
                        assert_eq!(message.len(), (n % 900) as usize + 1);
                        seen.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(seen.into_inner(), 3 * EACH as usize);
    });
}

#[test]
fn many_frames_with_one_bell() {
    let (here, there) = stream_pair().unwrap();
    let (_sender, receiver) = there.split();
    let receiving = thread::spawn(move || {
        let mut bytes = Vec::new();
        (0..1000).map(|_| receiver.recv(&mut bytes).map(|_| bytes[0])).collect::<Result<Vec<_>, _>>()
    });
    let parts: Vec<[u8; 1]> = (0..500).map(|n| [n as u8]).collect();
    let slices: Vec<[&[u8]; 1]> = parts.iter().map(|part| [&part[..]]).collect();
    here.sender().send_many(slices.iter().map(|slices| Frame::new(slices))).unwrap();
    for slices in &slices {
        here.sender().feed(&Frame::new(slices)).unwrap();
    }
    here.sender().flush().unwrap();
    let expected: Vec<u8> = (0..1000).map(|n| (n % 500) as u8).collect();
    assert_eq!(receiving.join().unwrap().unwrap(), expected);
}

// Futures.

#[test]
fn both_ends_on_one_thread_of_a_runtime() {
    let (here, there) = StreamOptions::new().capacity(4096).pipe::<Vec<u32>, u32>().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let server = tokio::spawn(async move {
            let mut count = 0;
            while let Ok(list) = there.recv_async().await {
                there.send_async(&list.iter().sum()).await.unwrap();
                count += 1;
            }
            count
        });
        let work = async {
            for n in 0..200 {
                // Some are longer than the ring, so both have to wait for each other; should one of them block the
                // thread, nobody would go on.
                let list: Vec<u32> = (0..n * 20).collect();
                here.send_async(&list).await.unwrap();
                assert_eq!(here.recv_async().await.unwrap(), list.iter().sum::<u32>());
            }
            here.send_bytes_async(b"stop").await.unwrap();
        };
        // The server refuses the bytes, which it does not expect, and ends.
        tokio::time::timeout(LIMIT, work).await.unwrap();
        assert_eq!(server.await.unwrap(), 200);
    });
}

#[test]
fn a_future_that_waits_is_woken_by_a_message_and_by_the_end() {
    let (sender, receiver) = channel::<u32>().unwrap();
    let mut waiting = Box::pin(receiver.recv_async());
    assert!(poll_once(waiting.as_mut()).is_pending());
    sender.send(&1).unwrap();
    assert_eq!(block_on(waiting).unwrap(), 1);
    let mut waiting = Box::pin(receiver.recv_async());
    assert!(poll_once(waiting.as_mut()).is_pending());
    drop(sender);
    assert!(matches!(block_on(waiting), Err(PipeError::Closed)));
}

#[test]
fn a_future_that_is_dropped_loses_no_message() {
    let (sender, receiver) = StreamOptions::new().capacity(4096).channel::<u32>().unwrap();
    for n in 0..100 {
        let mut dropped = Box::pin(receiver.recv_async());
        assert!(poll_once(dropped.as_mut()).is_pending());
        sender.send(&n).unwrap();
        drop(dropped);
        assert_eq!(receiver.recv().unwrap(), n);
    }
    // In the middle of a message that goes in pieces, on both sides.
    let mut sending = Box::pin(sender.send_bytes_async(&[5; 20_000]));
    assert!(poll_once(sending.as_mut()).is_pending());
    let mut dropped = Box::pin(receiver.recv_bytes_async(20_000));
    assert!(poll_once(dropped.as_mut()).is_pending());
    drop(dropped);
    let far = receiver.clone();
    let receiving = thread::spawn(move || far.recv_bytes(20_000));
    block_on(sending).unwrap();
    assert_eq!(receiving.join().unwrap().unwrap(), [5; 20_000]);

    let mut given_up = Box::pin(sender.send_bytes_async(&[6; 20_000]));
    assert!(poll_once(given_up.as_mut()).is_pending());
    drop(given_up);
    let receiving = thread::spawn(move || receiver.recv_bytes(20_000));
    block_on(sender.send_bytes_async(&[7; 20_000])).unwrap();
    assert_eq!(receiving.join().unwrap().unwrap(), [7; 20_000]);
}

#[test]
fn futures_and_threads_take_turns_at_one_end() {
    let (sender, receiver) = channel::<u32>().unwrap();
    let mut first = Box::pin(receiver.recv_async());
    assert!(poll_once(first.as_mut()).is_pending());
    let far = receiver.clone();
    let second = thread::spawn(move || far.recv().unwrap());
    let mut third = Box::pin(receiver.recv_async());
    assert!(poll_once(third.as_mut()).is_pending());
    drop(first);
    let third = thread::scope(|scope| {
        let third = scope.spawn(|| block_on(third).unwrap());
        sender.send(&1).unwrap();
        sender.send(&2).unwrap();
        third.join().unwrap()
    });
    assert_eq!(second.join().unwrap() + third, 3);
}

// Nothing stays.

fn takes_and_drops(parent: &Peer) {
    let end: Connection<u32> = parent.recv();
    end.recv().unwrap();
}

#[test]
fn nothing_is_left_of_a_pipe() {
    let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let maps = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().filter(|line| line.contains("memfd:polypool")).count()
    };
    // Other tests of this binary open and close descriptors at the same time, so this one runs in a process of its own.
    if std::env::var_os("POLYPOOL_IPC_ALONE").is_none() {
        let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
        alone.args(["--exact", "nothing_is_left_of_a_pipe", "--nocapture"]).env("POLYPOOL_IPC_ALONE", "1");
        assert!(alone.status().unwrap().success());
        return;
    }
    let mut before = (0, 0);
    for round in 0..20 {
        let (here, there) = pipe::<u32>().unwrap();
        let mut other = child("takes_and_drops", &there);
        drop(there);
        here.send(&1).unwrap();
        let mut waiting = Box::pin(here.recv_async());
        let _ = poll_once(waiting.as_mut());
        drop(waiting);
        if round % 2 == 0 {
            other.kill();
        }
        assert!(matches!(here.recv(), Err(PipeError::Closed)));
        drop((here, other));
        match round {
            // What is started once: the reactor, the board.
            1 => before = (count(), maps()),
            2.. => assert_eq!((count(), maps()), before),
            _ => {}
        }
    }
}
