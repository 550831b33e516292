//! Eight processes do random things to shared objects, and are killed at random moments, against a model of what must
//! hold whatever happens.
//!
//! The model: a child acknowledges what it has done *after* it has done it, in a word of its own that nobody else
//! writes. So of each kind of change at least as many have happened as were acknowledged, and at most one more for each
//! time that the child was killed. Everything else that is checked must hold at every moment: sums agree with their
//! parts, values are never torn, nothing comes out of a queue twice, and whoever waits gets on.

#[cfg(any(target_os = "linux", target_os = "android"))]
mod common;

#[cfg(any(target_os = "linux", target_os = "android"))]
mod tests {
    use std::collections::BTreeSet;
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::process::Child;
    use std::sync::atomic::Ordering::{Relaxed, SeqCst};
    use std::time::{Duration, Instant};

    use polypool_ipc::{
        Array, AtomicArray, AtomicValue, Barrier, BoundedSemaphore, Condvar, Event, GetError, ListItem, LockError,
        Luggage, Mutex, Queue, RwLock, SharedList, SharedMemory, Value, pack, recv_with_fds, send_with_fds, take_stdin,
        unpack,
    };
    use serde::{Deserialize, Serialize};
    use zerocopy::{FromBytes, Immutable, IntoBytes};

    use super::common::{Test, again};

    pub(crate) const TESTS: &[Test] = &[("10000_rounds_of_random_operations_with_random_kills", chaos)];
    pub(crate) const PARTS: &[Test] = &[("child", child)];

    const CHILDREN: usize = 8;
    const ROUNDS: u64 = 10_000;
    const KILLS: usize = 150;
    const PERMITS: u32 = 3;
    /// How many items each child may put into the queue in all its lives.
    const ITEMS: usize = 100_000;
    /// No wait of a child may take as long as this: it would be a hang.
    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(2);

    /// What several processes change together: the sum must be that of its parts.
    #[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
    #[repr(C)]
    struct Counts {
        total: u64,
        by: [u64; CHILDREN],
    }

    impl Counts {
        const ZERO: Counts = Counts { total: 0, by: [0; CHILDREN] };

        fn add(&mut self, me: usize) {
            self.check();
            self.total += 1;
            self.by[me] += 1;
        }

        fn check(&self) {
            assert_eq!(self.total, self.by.iter().sum::<u64>(), "the sum does not agree with its parts");
        }
    }

    #[derive(Clone, Serialize, Deserialize)]
    struct World {
        stop: AtomicValue<bool>,
        rounds: AtomicValue<u64>,
        mutex: Mutex<Counts>,
        value: Value<Counts>,
        rwlock: RwLock<[u64; 8]>,
        array: Array<u64>,
        semaphore: BoundedSemaphore,
        event: Event,
        barrier: Barrier,
        tokens: Mutex<u64>,
        more_tokens: Condvar,
        list: SharedList,
        memory: SharedMemory,
        queue: Queue<(usize, u64)>,
        /// What the children have acknowledged: of the mutex, the value, the atomic counter, and puts.
        acknowledged: Vec<AtomicArray<u64>>,
        atomic: AtomicArray<u64>,
        next_item: AtomicArray<u64>,
        seen: AtomicArray<u8>,
    }

    impl World {
        fn new() -> Self {
            let counters = || AtomicArray::new(CHILDREN).unwrap();
            World {
                stop: AtomicValue::new(false).unwrap(),
                rounds: AtomicValue::new(0).unwrap(),
                mutex: Mutex::new(Counts::ZERO).unwrap(),
                value: Value::new(Counts::ZERO).unwrap(),
                rwlock: RwLock::new([0; 8]).unwrap(),
                array: Array::new(100).unwrap(),
                semaphore: BoundedSemaphore::new(PERMITS).unwrap(),
                event: Event::new().unwrap(),
                barrier: Barrier::new(2).unwrap(),
                tokens: Mutex::new(0).unwrap(),
                more_tokens: Condvar::new().unwrap(),
                list: SharedList::builder().room(64).create((0..4).map(|_| ListItem::from("a".repeat(10)))).unwrap(),
                memory: SharedMemory::new(4096).unwrap(),
                queue: Queue::bounded(50).unwrap(),
                acknowledged: (0..4).map(|_| counters()).collect(),
                atomic: counters(),
                next_item: counters(),
                seen: AtomicArray::new(CHILDREN * ITEMS).unwrap(),
            }
        }

        fn mark_seen(&self, (from, number): (usize, u64)) {
            assert!(from < CHILDREN && number < ITEMS as u64, "an item that nobody put: {from}, {number}");
            let before = self.seen[from * ITEMS + number as usize].swap(1, SeqCst);
            assert_eq!(before, 0, "item {number} of child {from} came out twice");
        }
    }

    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: u64) -> u64 {
            // xorshift64 of Marsaglia, "Xorshift RNGs" (2003).
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % bound
        }
    }

    // ---- The children
    // --------------------------------------------------------------------------------------------------

    fn child() {
        let socket = UnixStream::from(take_stdin().unwrap());
        let mut bytes = vec![0; 64 * 1024];
        let (count, fds) = recv_with_fds(&socket, &mut bytes, 100).unwrap();
        let (world, me, seed): (World, usize, u64) =
            unpack(&Luggage::new(fds), || serde_json::from_slice(&bytes[..count])).unwrap();
        let mut random = Random(seed | 1);
        while !world.stop.load(SeqCst) {
            operate(&world, me, &mut random);
            world.rounds.fetch_add(1, SeqCst);
        }
    }

    fn operate(world: &World, me: usize, random: &mut Random) {
        let started = Instant::now();
        match random.below(15) {
            0 => {
                let mut guard = match world.mutex.lock() {
                    Ok(guard) => guard,
                    Err(LockError::Poisoned { mut guard, .. }) => {
                        guard.repair();
                        guard
                    }
                    Err(other) => panic!("{other:?}"),
                };
                guard.add(me);
                drop(guard);
                world.acknowledged[0][me].fetch_add(1, SeqCst);
            }
            1 => {
                // The short form; others may hold it for as long as they are scheduled out.
                match world.mutex.lock_timeout(SHORT) {
                    Ok(guard) | Err(LockError::Poisoned { guard, .. }) => guard.check(),
                    Err(LockError::TimedOut) => {}
                    Err(other) => panic!("{other:?}"),
                }
            }
            2 | 3 => {
                world.value.with(|counts| counts.add(me));
                world.acknowledged[1][me].fetch_add(1, SeqCst);
            }
            4 => {
                world.value.get().check();
                world.atomic[me].fetch_add(1, SeqCst);
                world.acknowledged[2][me].fetch_add(1, SeqCst);
            }
            5 => {
                let (Ok(read) | Err(LockError::Poisoned { guard: read, .. })) = world.rwlock.read() else {
                    panic!("a lock without a limit of time said that it had run out")
                };
                assert!(read.iter().all(|word| *word == read[0]), "torn: {:?}", *read);
            }
            6 => {
                let mut write = match world.rwlock.write() {
                    Ok(write) => write,
                    Err(LockError::Poisoned { mut guard, .. }) => {
                        guard.repair();
                        guard
                    }
                    Err(other) => panic!("{other:?}"),
                };
                let next = write[0] + 1;
                for word in write.iter_mut() {
                    *word = next;
                }
            }
            7 => {
                let mut guard = match world.array.lock() {
                    Ok(guard) => guard,
                    Err(LockError::Poisoned { mut guard, .. }) => {
                        // Written in place, so it may be of two generations, and of no more than two.
                        let kinds: BTreeSet<u64> = guard.iter().copied().collect();
                        assert!(kinds.len() <= 2, "{kinds:?}");
                        guard.fill(0);
                        guard.repair();
                        guard
                    }
                    Err(other) => panic!("{other:?}"),
                };
                assert!(guard.iter().all(|element| *element == guard[0]), "half-written, but not poisoned");
                let next = guard[0] + 1;
                guard.fill(next);
            }
            8 => {
                let permit = world.semaphore.acquire();
                assert!(world.semaphore.available() < PERMITS);
                drop(permit);
            }
            9 => match random.below(3) {
                0 => world.event.set(),
                1 => world.event.clear(),
                _ => {
                    let _ = world.event.wait_timeout(SHORT);
                }
            },
            10 => {
                let slot = random.below(4) as usize;
                let letter = char::from(b'a' + random.below(26) as u8);
                world.list.set(slot, letter.to_string().repeat(1 + random.below(60) as usize)).unwrap();
                let ListItem::Str(text) = world.list.get(random.below(4) as usize).unwrap() else {
                    panic!("only strings were put into the list")
                };
                let first = text.chars().next();
                assert!(!text.is_empty() && text.chars().all(|letter| Some(letter) == first), "torn: {text:?}");
                let at = random.below(4000) as usize;
                world.memory.write_at(at, &[1; 8]).unwrap();
            }
            11 => {
                // Two meet, or one waits in vain, or the other one dies: then it is broken for all until somebody
                // resets it.
                if world.barrier.wait_timeout(SHORT).is_err() && random.below(2) == 0 {
                    world.barrier.reset();
                }
            }
            12 => {
                let (Ok(mut tokens) | Err(LockError::Poisoned { guard: mut tokens, .. })) = world.tokens.lock() else {
                    panic!("a lock without a limit of time said that it had run out")
                };
                tokens.repair();
                *tokens += 1;
                drop(tokens);
                world.more_tokens.notify_one();
            }
            13 => {
                let (Ok(tokens) | Err(LockError::Poisoned { guard: tokens, .. })) = world.tokens.lock() else {
                    panic!("a lock without a limit of time said that it had run out")
                };
                let waited = world.more_tokens.wait_while_timeout(tokens, SHORT, |tokens| *tokens == 0);
                let (Ok((mut tokens, _)) | Err(LockError::Poisoned { guard: (mut tokens, _), .. })) = waited else {
                    panic!("after a wait the lock is taken, however long it takes")
                };
                *tokens = tokens.saturating_sub(1);
            }
            _ => {
                let number = world.next_item[me].fetch_add(1, SeqCst);
                if number < ITEMS as u64 && world.queue.put_timeout((me, number), SHORT).is_ok() {
                    world.acknowledged[3][me].fetch_add(1, SeqCst);
                }
                match world.queue.get_timeout(SHORT) {
                    Ok(item) => world.mark_seen(item),
                    Err(GetError::TimedOut) => {}
                    Err(other) => panic!("{other:?}"),
                }
            }
        }
        assert!(started.elapsed() < LONG, "an operation took {:?}", started.elapsed());
    }

    // ---- The parent
    // ----------------------------------------------------------------------------------------------------

    fn start(world: &World, me: usize, seed: u64) -> (Child, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let child = again("child").stdin(OwnedFd::from(theirs)).spawn().unwrap();
        let (bytes, luggage) = pack(|| serde_json::to_vec(&(world, me, seed)).unwrap());
        send_with_fds(&ours, &bytes, &luggage.fds().collect::<Vec<_>>()).unwrap();
        (child, ours)
    }

    fn open_descriptors() -> usize {
        std::fs::read_dir("/proc/self/fd").unwrap().count()
    }

    fn named_memory() -> BTreeSet<std::ffi::OsString> {
        let listed = std::fs::read_dir("/dev/shm");
        listed.map(|entries| entries.filter_map(|entry| Some(entry.ok()?.file_name())).collect()).unwrap_or_default()
    }

    fn chaos() {
        let mut seed = [0; 8];
        std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut seed).unwrap();
        let seed = u64::from_le_bytes(seed);
        println!("seed {seed:#x}");
        let mut random = Random(seed | 1);

        drop(World::new()); // What is opened once and kept, such as the board.
        let descriptors = open_descriptors();
        let names = named_memory();
        let world = World::new();
        let mut kills = [0_u64; CHILDREN];
        let mut children: Vec<_> = (0..CHILDREN).map(|me| start(&world, me, random.below(u64::MAX))).collect();
        let mut killed = 0;
        let mut last = (0, Instant::now());
        while killed < KILLS || world.rounds.load(SeqCst) < ROUNDS {
            let rounds = world.rounds.load(SeqCst);
            if rounds > last.0 {
                last = (rounds, Instant::now());
            }
            assert!(last.1.elapsed() < LONG, "nobody gets on: {rounds} rounds, {killed} kills");
            let me = random.below(CHILDREN as u64) as usize;
            // Not a wait for something: the moments of the kills are to be random.
            std::thread::sleep(Duration::from_micros(random.below(20_000)));
            if let Some(status) = children[me].0.try_wait().unwrap() {
                panic!("child {me} ended by itself: {status}");
            }
            if killed < KILLS || rounds < ROUNDS {
                children[me].0.kill().unwrap();
                children[me].0.wait().unwrap();
                kills[me] += 1;
                killed += 1;
                children[me] = start(&world, me, random.below(u64::MAX));
            }
        }
        world.stop.store(true, SeqCst);
        for (me, (child, socket)) in children.iter_mut().enumerate() {
            let status = child.wait().unwrap();
            assert!(status.success(), "child {me}: {status}");
            let _ = &socket;
        }
        drop(children);
        println!("{} rounds, {killed} kills", world.rounds.load(SeqCst));

        let (Ok(counts) | Err(LockError::Poisoned { guard: counts, .. })) = world.mutex.lock() else {
            panic!("no lock")
        };
        counts.check();
        let atomic: Vec<u64> = (0..CHILDREN).map(|me| world.atomic[me].load(Relaxed)).collect();
        let value = world.value.get();
        value.check();
        for me in 0..CHILDREN {
            for (what, done, acknowledged) in [
                ("mutex", counts.by[me], world.acknowledged[0][me].load(Relaxed)),
                ("value", value.by[me], world.acknowledged[1][me].load(Relaxed)),
                ("atomic", atomic[me], world.acknowledged[2][me].load(Relaxed)),
            ] {
                assert!(
                    (acknowledged..=acknowledged + kills[me]).contains(&done),
                    "{what} of child {me}: {done} done, {acknowledged} acknowledged, {} kills",
                    kills[me]
                );
            }
        }
        drop(counts);
        let permits: Vec<_> = (0..PERMITS).map(|_| world.semaphore.acquire_timeout(LONG).unwrap()).collect();
        assert_eq!(world.semaphore.available(), 0);
        drop(permits);

        while let Ok(item) = world.queue.try_get() {
            world.mark_seen(item);
        }
        assert!(matches!(world.queue.try_get(), Err(GetError::Empty)));
        let seen = world.seen.to_vec().iter().map(|seen| u64::from(*seen)).sum::<u64>();
        let put: u64 = (0..CHILDREN).map(|me| world.acknowledged[3][me].load(Relaxed)).sum();
        let killed = killed as u64;
        assert!(seen + killed >= put, "{put} items were put, {seen} came out, {killed} kills");
        assert!(seen <= put + killed, "{seen} items came out, but only {put} were put, {killed} kills");

        drop(world);
        assert_eq!(open_descriptors(), descriptors);
        // Others on this machine may have named memory too, but not for long.
        let patience = Instant::now() + LONG;
        while let Some(left) = named_memory().difference(&names).next() {
            assert!(Instant::now() < patience, "{left:?} is left in /dev/shm");
            std::thread::yield_now();
        }
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn main() -> std::process::ExitCode {
    common::main(tests::TESTS, tests::PARTS)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn main() {}
