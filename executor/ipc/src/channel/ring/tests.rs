//! The ring against a model, and against a peer that writes what it likes.

use std::collections::VecDeque;

use super::*;
use crate::object::Kind;

const KIND: Kind = *b"test";

fn ring(memory: u64, bound: Option<u32>) -> Ring {
    Ring::create(KIND, 0, Options { bound, memory }, 0, 0).unwrap()
}

fn put(ring: &Ring, bytes: &[u8]) -> Option<Result<(), Refusal>> {
    match ring.put(|index| (index == 0).then_some(bytes), &mut 0, Mode::Once, &mut Memory::default()) {
        Step::Ready(outcome) => Some(outcome),
        Step::Wait(_) => None,
    }
}

fn get(ring: &Ring, most: usize) -> Option<Result<Vec<Vec<u8>>, Refusal>> {
    let mut batch = Batch::default();
    match ring.get(&mut batch, most, Mode::Once, &mut Memory::default(), |_| ()) {
        Step::Ready(Ok(())) => Some(Ok((0..batch.len()).map(|index| batch.get(index).to_vec()).collect())),
        Step::Ready(Err(refusal)) => Some(Err(refusal)),
        Step::Wait(_) => None,
    }
}

/// Good enough to choose what to do.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Moves the positions of an empty ring to just before where they wrap.
fn near_the_wrap(ring: &Ring, granules: u32) {
    let position = Position { count: u32::MAX - 3, at: 0_u32.wrapping_sub(granules) }.word();
    let head = ring.head();
    for word in [&head.tail.0, &head.head.0, &head.producers.0.seen, &head.consumers.0.seen] {
        word.store(position, Ordering::SeqCst);
    }
}

#[test]
fn agrees_with_a_queue_of_vectors() {
    let pattern: Vec<u8> = (0..(4_u64 << 20) + 400).map(|at| (at * at / 7) as u8).collect();
    for seed in 1..=60 {
        let mut random = Random(u64::wrapping_mul(seed, 0x9e37_79b9_7f4a_7c15));
        let memory = [4 << 10, 64 << 10, 1 << 20, 4 << 20][(seed % 4) as usize];
        let bound = [None, Some(5), Some(1_000)][(seed % 3) as usize];
        let ring = ring(memory, bound);
        near_the_wrap(&ring, random.below(20_000) as u32);
        let mut model: VecDeque<Vec<u8>> = VecDeque::new();
        let room = |model: &VecDeque<Vec<u8>>| {
            memory as usize - model.iter().map(|item| 8 + item.len().next_multiple_of(8)).sum::<usize>()
        };
        let longest = [40, 700, memory][random.below(3) as usize];
        for step in 0..if longest > 64 << 10 { 150 } else { 1_500_u64 } {
            // Phases in which it fills, and in which it empties.
            if random.below(10) < if (step / 40) % 2 == 0 { 7 } else { 3 } {
                let len = random.below(longest + 30) as usize;
                let item = pattern[step as usize % 251..][..len].to_vec();
                let fits = 8 + len.next_multiple_of(8);
                match put(&ring, &item) {
                    Some(Ok(())) => {
                        assert!(fits <= room(&model) && bound.is_none_or(|bound| model.len() < bound as usize));
                        model.push_back(item);
                    }
                    Some(Err(Refusal::TooLarge { size, limit })) => {
                        assert_eq!((size, limit), (len as u64, memory - 8));
                        assert!(fits > memory as usize);
                    }
                    Some(Err(other)) => panic!("{other:?}"),
                    None => assert!(fits > room(&model) || bound.is_some_and(|bound| model.len() >= bound as usize)),
                }
            } else {
                let most = 1 + random.below(4) as usize;
                match get(&ring, most) {
                    None => assert!(model.is_empty()),
                    Some(items) => {
                        let items = items.unwrap();
                        assert!(
                            items.len() == most.min(model.len()) || items.iter().map(Vec::len).sum::<usize>() >= BATCH
                        );
                        for item in items {
                            assert!(item == model.pop_front().unwrap(), "another item, or a torn one");
                        }
                    }
                }
            }
            assert_eq!(ring.len().0 as usize, model.len());
        }
    }
}

/// Every length at every place of a small ring, so that it wraps round inside of the head's granule's neighbours, of
/// the payload, and exactly at its end.
#[test]
fn wraps_at_every_offset() {
    let ring = ring(4 << 10, None);
    for len in 0..300_usize {
        for _ in 0..3 {
            let one: Vec<u8> = (0..len).map(|at| at as u8).collect();
            let two = vec![0xab; 4096 - 16 - len.next_multiple_of(8)];
            assert!(matches!(put(&ring, &one), Some(Ok(()))));
            assert!(matches!(put(&ring, &two), Some(Ok(()))), "it fills the ring exactly");
            assert!(put(&ring, b"").is_none() && ring.is_full());
            assert_eq!(get(&ring, 9).unwrap().unwrap(), [one, two]);
            // One granule further.
            assert!(matches!(put(&ring, b""), Some(Ok(()))));
            assert_eq!(get(&ring, 1).unwrap().unwrap(), [b""]);
        }
    }
}

/// Grown at every position of its content.
#[test]
fn grows_with_its_content_wherever_it_stands() {
    for offset in (0..64 << 10).step_by(1 << 10).flat_map(|at| [at, at + 8, at + 1016]) {
        let ring = ring(1 << 20, None);
        near_the_wrap(&ring, 8_192 * 3 - offset / 8);
        let items: Vec<Vec<u8>> = (0..90_u32).map(|n| vec![n as u8; 1_000 + n as usize]).collect();
        for item in &items {
            assert!(matches!(put(&ring, item), Some(Ok(()))));
        }
        assert_eq!(ring.size().unwrap() as usize * GRANULE, 128 << 10);
        assert!(get(&ring, 1_000).unwrap().unwrap() == items);
    }
}

#[test]
fn becomes_small_again_and_gives_its_memory_back() {
    let ring = ring(256 << 20, None);
    let backed = || ring.head().shape.0.backed.load(Ordering::Relaxed);
    let blocks = || rustix::fs::fstat(ring.object.segment().fd()).unwrap().st_blocks as u64 * 512;
    assert_eq!(backed(), FIRST);
    let item = vec![1; 10 << 20];
    for _ in 0..10 {
        assert!(matches!(put(&ring, &item), Some(Ok(()))));
    }
    assert_eq!(ring.size().unwrap() as usize * GRANULE, 128 << 20);
    assert!(blocks() >= 100 << 20);
    for _ in 0..10 {
        assert!(get(&ring, 1).unwrap().unwrap() == [&*item]);
    }
    assert_eq!((ring.size().unwrap() as usize * GRANULE) as u64, FIRST);
    assert!(blocks() <= KEEP + (1 << 20), "{}", blocks());
    // And goes on as before.
    assert!(matches!(put(&ring, &item), Some(Ok(()))));
    assert!(get(&ring, 1).unwrap().unwrap() == [&*item]);
}

/// Whatever stands in the memory of a ring, each operation returns, and copies no more than the ring holds.
#[test]
fn a_lying_peer_spoils_the_content_and_nothing_else() {
    let mut random = Random(0x1234_5678_9abc_def1);
    let (mut corrupt, mut fine) = (0, 0);
    for round in 0..3_000 {
        let ring = ring(if round % 2 == 0 { 4 << 10 } else { 256 << 10 }, (round % 3 == 0).then_some(10));
        for n in 0..random.below(12) {
            let _ = put(&ring, &vec![n as u8; random.below(600) as usize]);
        }
        // One to three words: the positions, the sizes, the first heads of records.
        for _ in 0..1 + random.below(3) {
            let value = match random.below(4) {
                0 => random.below(u64::MAX),
                1 => 1 << random.below(64),
                2 => u64::MAX - random.below(9),
                _ => random.below(5_000),
            };
            let head = ring.head();
            let words =
                [&head.tail.0, &head.head.0, &head.producers.0.seen, &head.consumers.0.seen, &head.shape.0.backed];
            match random.below(9) {
                word @ 0..=4 => words[word as usize].store(value, Ordering::Relaxed),
                5 => head.shape.0.grown.store(value as u32, Ordering::Relaxed),
                6 => head.not_empty.0.store(value as u32, Ordering::Relaxed),
                7 => head.not_full.0.store(value as u32, Ordering::Relaxed),
                _ => {
                    let place = ring.start + random.below(400) as usize * GRANULE;
                    ring.object.at::<AtomicU64>(place).store(record::head(value as usize), Ordering::Relaxed);
                }
            }
        }
        for _ in 0..20 {
            for outcome in [put(&ring, &[5; 100]).map(|it| it.map(drop)), get(&ring, 3).map(|it| it.map(drop))] {
                match outcome {
                    Some(Err(Refusal::Corrupt(_))) => corrupt += 1,
                    Some(Err(other)) => panic!("{other:?}"),
                    _ => fine += 1,
                }
            }
            let _ = (ring.len(), ring.is_full());
        }
    }
    assert!(corrupt > 1_000 && fine > 1_000, "{corrupt} {fine}");
}

#[test]
fn walking_through_a_ring_ends_with_any_bytes() {
    let mut random = Random(77);
    for _ in 0..20_000 {
        let mut bytes = vec![0; 4096];
        for at in (0..4096).step_by(8) {
            let head = record::head(random.below(64) as usize);
            bytes[at..at + 8].copy_from_slice(&head.to_ne_bytes());
        }
        let head = Position { count: random.below(9) as u32, at: random.below(600) as u32 };
        let tail = head.after(random.below(20) as u32, random.below(560) as u32);
        let _ = record::walk(head.word(), tail.word(), &bytes);
    }
    let one: Vec<u8> = record::head(5).to_ne_bytes().into_iter().chain([0; 4088]).collect();
    let tail = Position::default().after(1, 2).word();
    assert_eq!(record::walk(0, tail, &one), Ok(1));
    assert!(record::walk(0, tail, &[0; 4096]).is_err(), "zeros are no record");
}

#[test]
fn a_position_that_moves_without_end_holds_no_producer_for_ever() {
    let ring = ring(64 << 10, Some(1));
    put(&ring, b"the only one").unwrap().unwrap();
    let head = ring.head();
    let (start, over) =
        (Position::from_word(head.head.0.load(Ordering::SeqCst)), std::sync::atomic::AtomicBool::new(false));
    let (sender, receiver) = std::sync::mpsc::channel();
    let refused = std::thread::scope(|scope| {
        // A peer that moves the head by bytes, so that the producer finds it elsewhere each time, and still no room for
        // a record.
        scope.spawn(|| {
            let mut bytes = 1;
            while !over.load(Ordering::Relaxed) {
                bytes = bytes % 4_000 + 1;
                head.head.0.store(Position { at: start.at.wrapping_sub(bytes), ..start }.word(), Ordering::Relaxed);
            }
        });
        scope.spawn(|| {
            for _ in 0..100 {
                sender.send(put(&ring, b"another").is_none()).unwrap();
            }
        });
        let refused = (0..100).all(|_| receiver.recv_timeout(std::time::Duration::from_secs(30)) == Ok(true));
        over.store(true, Ordering::Relaxed);
        refused
    });
    assert!(refused);
}
