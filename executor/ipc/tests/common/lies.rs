//! What a peer that lies can do: bytes of an input are written over the memory of a shared object, before and between
//! its operations.
//!
//! [`memory`] is one function of bytes, so that a fuzzer can look for the bytes that do harm
//! (`integration-tests/fuzz`), and a test can run it over random ones (`tests/lies.rs`). Nothing may panic, hang, crash
//! or take memory without bound; what the operations say does not matter.
//!
//! An input is a kind of object, and then commands of a byte each with what belongs to them:
//!
//! | command | is |
//! |---|---|
//! | below 0x80 | a lie: an offset and bytes to be written there, or numbers that mean something to the object |
//! | below 0xc0 | an operation on the handle at hand |
//! | the rest | an operation on a handle that is decoded anew from the memory as it is |
//!
//! One lie is the right of a peer, and makes an operation wait for ever: that a lock is held by a process that lives.
//! So before an operation that has no time limit, and before the end of a guard, the lock words that name the living
//! are freed ([`Stage::free`]).

use std::fs::File;
use std::future::Future;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::pin::{Pin, pin};
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use polypool_ipc::{
    Array, ArrayGuard, AtomicArray, AtomicValue, Barrier, BoundedSemaphore, ByteQueue, Condvar, Connection, Event, Fd,
    Frame, FrameReceiver, FrameSender, JoinableQueue, ListItem, LockOwner, LockResult, Luggage, Mutex, Once, OnceValue,
    PipeReceiver, PipeSender, Queue, QueueOptions, ReentrantMutex, RingSocket, RwLock, Semaphore, SharedList,
    SharedMemory, StreamOptions, Value, pack, unpack,
};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// How many kinds of objects there are.
pub(crate) const KINDS: u8 = 25;

/// In the first byte: the board of presences is lied about as well.
const BOARD: u8 = 0x80;

/// How many commands of an input are obeyed, and how many operations may wait for their time to run out.
const COMMANDS: usize = 40;
const WAITS: u32 = 3;
const WAIT: Duration = Duration::from_micros(300);

/// Where things are in the memory of objects; `tests/lies.rs` looks whether they are there.
const BODY: u64 = 64;
const FIRST: &[u64] = &[BODY];
const RING: &[u64] = &[256, 512];
const STREAM: &[u64] = &[640, 768, 1_408, 1_536];
const NONE: &[u64] = &[];

/// A board: its head, and the words of each seat.
const SEAT: u64 = 64;
const SEATS: u64 = 4_095;
const BOARD_LEN: u64 = SEAT * (SEATS + 2);
/// How much of it is lied about.
const TOLD: u64 = SEAT * 34;

/// Runs an input; whatever is wrong is a panic, a crash, or doesn't end.
pub(crate) fn memory(input: &[u8]) {
    let Some((&kind, rest)) = input.split_first() else { return };
    let board = kind & BOARD != 0;
    let run = Run { input: rest, board };
    match kind % BOARD % KINDS {
        0 => run.play(&Mutex::new([1_u32, 2, 3]), FIRST, mutex),
        1 => run.play(&ReentrantMutex::new(7_u64), FIRST, reentrant),
        2 => run.play(&RwLock::new([1_u16; 5]), FIRST, rwlock),
        3 => run.play(&Semaphore::new(2), FIRST, semaphore),
        4 => run.play(&BoundedSemaphore::new(2), FIRST, |it, op, stage| {
            semaphore(it, op, stage);
        }),
        5 => run.play(&Event::new(), NONE, event),
        6 => run.play(&Condvar::new(), FIRST, condvar),
        7 => run.play(&Barrier::new(2), FIRST, barrier),
        8 => run.play(&Once::new(), FIRST, once),
        9 => run.play(&OnceValue::<[u8; 12]>::new(), FIRST, once_value),
        10 => run.play(&Value::new([1_u64, 2, 3]), FIRST, value),
        11 => run.play(&Value::new(5_u32), FIRST, value),
        12 => run.play(&Array::from_slice(&[1_u32, 2, 3, 4, 5]), FIRST, array),
        13 => run.play(&Array::from_slice(&[[7_u8; 12]; 4]), FIRST, array),
        14 => run.play(&AtomicValue::new(true), NONE, |it, _, _| {
            it.store(!it.load(Ordering::Relaxed), Ordering::Relaxed);
        }),
        15 => run.play(&AtomicArray::from_slice(&[1_i64, 2, 3]), NONE, |it, op, _| {
            let sum = it.to_vec().into_iter().fold(0_i64, i64::wrapping_add);
            it.get(usize::from(op)).map(|element| element.fetch_add(sum, Ordering::Relaxed));
        }),
        16 => run.play(&shared_memory(), NONE, bytes),
        17 => run.play(&shared_list(), NONE, list),
        18 => run.play(&queue_options(rest).queue(), RING, queue),
        19 => run.play(&queue_options(rest).joinable(), RING, joinable),
        20 => run.play(&queue_options(rest).bytes(), RING, byte_queue),
        21 => run.play(&StreamOptions::new().capacity(4_096).one_way(), STREAM, stream),
        22 => run.play(&StreamOptions::new().capacity(4_096).channel::<Parcel>(), STREAM, pipe),
        23 => run.play(&StreamOptions::new().capacity(4_096).pipe::<Item, Parcel>(), STREAM, connection),
        _ => ring_socket(rest).expect("the ends of a connection"),
    }
}

/// What goes through queues and pipes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Item {
    number: u64,
    text: String,
    bytes: Vec<u8>,
    more: Option<Vec<Item>>,
}

/// What goes through pipes, with a descriptor.
type Parcel = (u32, Option<Fd>);

fn item(stage: &mut Stage<'_>) -> Item {
    let len = usize::from(stage.byte());
    // Some are longer than the smallest ring.
    let bytes = vec![7; if len > 0xf0 { len * 25 } else { len }];
    Item { number: len as u64, text: "text".into(), bytes, more: None }
}

struct Run<'a> {
    input: &'a [u8],
    board: bool,
}

impl Run<'_> {
    fn play<H: Serialize + DeserializeOwned>(
        self,
        made: &std::io::Result<H>,
        locks: &'static [u64],
        act: impl Fn(&H, u8, &mut Stage<'_>),
    ) {
        let made = made.as_ref().expect("an object");
        let (bytes, luggage) = pack(|| serde_json::to_vec(made).expect("a handle in JSON"));
        let mut fds: Vec<OwnedFd> = luggage.fds().map(own).collect();
        let memory = File::from(own(fds[0].as_fd()));
        // Objects without holders have no board.
        let has_board = locks != NONE && fds.len() > 1;
        let mut board = has_board.then(|| File::from(own(fds[1].as_fd())));
        let mut stage = Stage::new(self.input, memory, locks);
        if self.board && has_board {
            fds[1] = another_board(board.as_ref().expect("a board"));
            board = Some(File::from(own(fds[1].as_fd())));
            stage.lied_board = true;
        }
        stage.board = board;
        let luggage = Luggage::new(fds);
        let decode = || unpack(&luggage, || serde_json::from_slice::<H>(&bytes));
        let mut own_handle = if stage.lied_board { None } else { Some(Ok(made)) };
        let decoded;
        if own_handle.is_none() {
            stage.meddle();
            decoded = decode();
            own_handle = decoded.as_ref().ok().map(Ok::<&H, ()>);
        }
        while let Some(command) = stage.command() {
            match command {
                0..0x80 => stage.lie(command),
                0x80..0xc0 => {
                    if let Some(Ok(handle)) = &own_handle {
                        act(handle, command & 0x3f, &mut stage);
                    }
                }
                0xc0.. => {
                    if let Ok(handle) = decode() {
                        act(&handle, command & 0x3f, &mut stage);
                        stage.free();
                    }
                }
            }
        }
        stage.free();
    }
}

fn own(fd: BorrowedFd<'_>) -> OwnedFd {
    fd.try_clone_to_owned().expect("a descriptor")
}

/// Memory that can be truncated is there to be truncated.
fn is_open(file: &File) -> bool {
    rustix::fs::fcntl_get_seals(file).is_ok_and(|seals| !seals.contains(SealFlags::SHRINK))
}

/// A board of our own to lie about, which begins as a copy of that one.
fn another_board(board: &File) -> OwnedFd {
    let fd = memfd_create("board", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("memory");
    ftruncate(&fd, BOARD_LEN).expect("its size");
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).expect("its seals");
    let mut start = [0; TOLD as usize];
    board.read_exact_at(&mut start, 0).expect("the board");
    let copy = File::from(fd);
    copy.write_all_at(&start, 0).expect("a copy of the board");
    copy.into()
}

/// The input, and what is lied about.
pub(crate) struct Stage<'a> {
    input: &'a [u8],
    commands: usize,
    waits: u32,
    memory: File,
    len: u64,
    sealed: bool,
    board: Option<File>,
    lied_board: bool,
    locks: &'static [u64],
}

impl<'a> Stage<'a> {
    fn new(input: &'a [u8], memory: File, locks: &'static [u64]) -> Self {
        let len = memory.metadata().expect("the size of memory").len();
        let sealed = !is_open(&memory);
        Stage { input, commands: 0, waits: WAITS, memory, len, sealed, board: None, lied_board: false, locks }
    }

    fn byte(&mut self) -> u8 {
        match self.input.split_first() {
            Some((&byte, rest)) => {
                self.input = rest;
                byte
            }
            None => 0,
        }
    }

    fn command(&mut self) -> Option<u8> {
        self.commands += 1;
        (self.commands <= COMMANDS && !self.input.is_empty()).then(|| self.byte())
    }

    /// The lies that come next, if any do: between the beginning and the end of an operation.
    fn meddle(&mut self) {
        for _ in 0..4 {
            match self.input.first() {
                Some(&command) if command < 0x80 && self.commands < COMMANDS => {
                    self.commands += 1;
                    self.byte();
                    self.lie(command);
                }
                _ => return,
            }
        }
    }

    /// How long an operation may wait for what doesn't come.
    fn wait(&mut self) -> Duration {
        match self.waits.checked_sub(1) {
            Some(left) => {
                self.waits = left;
                WAIT
            }
            None => Duration::ZERO,
        }
    }

    fn lie(&mut self, command: u8) {
        let offset = u64::from(u16::from_le_bytes([self.byte(), self.byte()]));
        if !self.sealed && command == 0x7f {
            // Takes the memory away.
            let _ = ftruncate(&self.memory, offset % (self.len * 2));
            return;
        }
        let (file, from, len) = match &self.board {
            Some(board) if self.lied_board && command & 0x40 != 0 => (board, 0, TOLD),
            _ if command & 0x40 != 0 || self.len <= BODY => (&self.memory, 0, self.len),
            _ => (&self.memory, BODY, self.len - BODY),
        };
        let at = from + offset % len;
        let told: &[u8] = if command & 0x20 == 0 {
            let count = (usize::from(command & 0x1f) + 1).min(self.input.len());
            let (bytes, rest) = self.input.split_at(count);
            self.input = rest;
            bytes
        } else {
            // Numbers that mean something, or nearly do, where numbers are.
            let me = word_of_ours();
            let number: u32 = match command & 0x1f {
                0 => 0,
                1 => 1,
                2 => u32::MAX,
                3 => me,
                4 => me | 1 << 31,
                5 => me.wrapping_add(1),
                6 => me ^ 1 << 18,
                7 => 1 << 31,
                8 => 1 << 30,
                9 => std::process::id(),
                10 => (self.len as u32).wrapping_sub(1),
                11 => self.len as u32,
                12 => i32::MAX as u32,
                13 => 0x2aaa_aaaa,
                other => 1 << other,
            };
            let at = at & !3;
            let _ = file.write_all_at(&number.to_le_bytes()[..(from + len - at).min(4) as usize], at);
            self.forget_the_living();
            return;
        };
        let count = told.len().min((from + len - at) as usize);
        let _ = file.write_all_at(&told[..count], at);
        self.forget_the_living();
    }

    /// Takes the numbers of processes from the board. For one that is said to be dead, but lives, operations wait 100
    /// ms each; that is right, and takes a fuzzer's time.
    fn forget_the_living(&self) {
        if let (true, Some(board)) = (self.lied_board, &self.board) {
            let mut told = [0; TOLD as usize];
            let _ = board.read_exact_at(&mut told, 0);
            for at in (SEAT as usize..told.len()).step_by(SEAT as usize) {
                if told[at + 16..at + 20] != [0; 4] {
                    let _ = board.write_all_at(&[0; 4], at as u64 + 16);
                }
            }
        }
    }

    /// Frees the locks that the living hold.
    fn free(&self) {
        for &at in self.locks {
            let word = read_u32(&self.memory, at);
            if word & 0x3fff_ffff != 0 && self.is_alive(word & 0x3fff_ffff) {
                let _ = self.memory.write_all_at(&[0; 4], at);
            }
        }
    }

    fn is_alive(&self, holder: u32) -> bool {
        let Some(board) = &self.board else { return true };
        let (slot, generation) = (u64::from(holder >> 18), holder & 0x3_ffff);
        if slot == 0 {
            return false;
        }
        let seat = SEAT + slot.min(SEATS) * SEAT;
        let (word, now) = (read_u32(board, seat + 8), read_u32(board, seat + 12));
        now & 0x3_ffff == generation && word & 0x4000_0000 == 0 && word & 0x3fff_ffff != 0
    }

    /// Frees the slots of a list, whose locks name processes by their numbers.
    fn free_list(&self, list: &SharedList) {
        let mut at = (BODY + 8 * list.len() as u64).next_multiple_of(64);
        for room in (0..list.len()).filter_map(|index| list.room(index).ok()) {
            let mut word = [0; 8];
            if self.memory.read_exact_at(&mut word, at).is_ok() {
                let pid = (u64::from_le_bytes(word) & ((1 << 22) - 1)) as i32;
                let pid = rustix::process::Pid::from_raw(pid);
                if pid.is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok()) {
                    let _ = self.memory.write_all_at(&[0; 8], at);
                }
            }
            at += (16 + 2 * (8 + room as u64)).next_multiple_of(64);
        }
    }
}

fn read_u32(file: &File, at: u64) -> u32 {
    let mut word = [0; 4];
    let _ = file.read_exact_at(&mut word, at);
    u32::from_le_bytes(word)
}

/// What stands in a lock that this process holds.
pub(crate) fn word_of_ours() -> u32 {
    static WORD: OnceLock<u32> = OnceLock::new();
    *WORD.get_or_init(|| {
        let mutex = Mutex::new(0_u32).expect("a mutex");
        let guard = mutex.lock().expect("its guard");
        let (_, luggage) = pack(|| serde_json::to_vec(&mutex).expect("a handle"));
        let word = read_u32(&File::from(own(luggage.fds().next().expect("its memory"))), BODY);
        drop(guard);
        assert_ne!(word, 0, "the word of a lock is elsewhere");
        word
    })
}

/// Polls a future as a runtime would that then loses interest.
fn poll<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..2 {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Some(output);
        }
    }
    None
}

/// Polls a future that goes on later, if it isn't ready yet.
fn nudge<F: Future>(future: &mut Option<Pin<Box<F>>>) {
    let mut context = Context::from_waker(Waker::noop());
    if future.as_mut().is_some_and(|future| future.as_mut().poll(&mut context).is_ready()) {
        *future = None;
    }
}

fn guard<G>(result: LockResult<G>) -> Option<G> {
    result.map_or_else(polypool_ipc::LockError::into_guard, Some)
}

fn mutex(it: &Mutex<[u32; 3]>, op: u8, stage: &mut Stage<'_>) {
    match op % 6 {
        0 => {
            if let Some(mut guard) = guard(it.try_lock()) {
                guard[0] = guard[0].wrapping_add(guard[2]);
                stage.meddle();
                match op / 8 {
                    0 => guard.commit(),
                    1 => guard.rollback(),
                    2 => guard.repair(),
                    _ => {}
                }
                guard[1] = 1;
                stage.meddle();
            }
        }
        1 => drop(it.lock_timeout(stage.wait())),
        2 => drop(poll(it.lock_async())),
        3 => {
            let _ = (it.is_poisoned(), format!("{it:?}"), it.is_same(it));
            it.clear_poison();
        }
        4 => {
            stage.free();
            let _ = it.with(|value| value[0]);
        }
        _ => {
            let one = it.try_lock();
            drop(it.lock_timeout(stage.wait()));
            drop(one);
        }
    }
}

fn reentrant(it: &ReentrantMutex<u64>, op: u8, stage: &mut Stage<'_>) {
    match op % 5 {
        0 => {
            let one = guard(it.try_lock());
            stage.meddle();
            if let Some(two) = guard(it.lock_timeout(stage.wait())) {
                two.update(|value| value.wrapping_add(1));
                two.set(two.get());
                two.repair();
                stage.meddle();
            }
            drop(one);
        }
        1 => drop(it.lock_timeout(stage.wait())),
        2 => {
            let owner = LockOwner::new();
            let one = poll(it.lock_async(&owner));
            stage.meddle();
            drop(poll(it.lock_async(&owner)));
            drop(one);
        }
        3 => drop(it.try_lock()),
        _ => {
            let _ = (it.is_poisoned(), format!("{it:?}"), it.is_same(it));
            it.clear_poison();
        }
    }
}

fn rwlock(it: &RwLock<[u16; 5]>, op: u8, stage: &mut Stage<'_>) {
    stage.free();
    match op % 7 {
        0 => {
            let guard = it.try_read();
            stage.meddle();
            stage.free();
            drop(it.try_read());
            drop(guard);
        }
        1 => {
            if let Some(mut guard) = guard(it.try_write()) {
                guard[1] += u16::from(guard[1] == 3);
                stage.meddle();
                stage.free();
                match op / 8 {
                    0 => guard.commit(),
                    1 => guard.rollback(),
                    _ => guard.repair(),
                }
                stage.meddle();
                stage.free();
            }
        }
        2 => drop(it.read_timeout(stage.wait())),
        3 => drop(it.write_timeout(stage.wait())),
        4 => {
            let guard = poll(it.write_async());
            stage.meddle();
            stage.free();
            drop(guard);
        }
        5 => {
            let one = poll(it.read_async());
            stage.free();
            let two = it.write_timeout(stage.wait());
            drop((one, two));
        }
        _ => {
            let _ = (it.is_poisoned(), format!("{it:?}"), it.is_same(it));
            it.clear_poison();
        }
    }
}

fn semaphore(it: &Semaphore, op: u8, stage: &mut Stage<'_>) {
    stage.free();
    match op % 8 {
        0 => {
            let permit = it.try_acquire();
            stage.meddle();
            stage.free();
            drop(permit);
        }
        1 => drop(it.acquire_timeout(stage.wait())),
        2 => {
            let count = u32::from(stage.byte());
            let permit = it.try_acquire_many(count);
            stage.meddle();
            stage.free();
            if let Ok(permit) = permit {
                let _ = permit.permits();
                permit.forget();
            }
        }
        3 => drop(it.acquire_many_timeout(u32::from(op), stage.wait())),
        4 => {
            let permit = poll(it.acquire_async());
            stage.meddle();
            stage.free();
            drop(permit);
        }
        5 => drop(it.release(1 << (stage.byte() % 32))),
        6 => drop(poll(it.acquire_many_async(u32::from(op)))),
        _ => drop((it.available(), format!("{it:?}"))),
    }
}

fn event(it: &Event, op: u8, stage: &mut Stage<'_>) {
    match op % 5 {
        0 => it.set(),
        1 => it.clear(),
        2 => drop(it.wait_timeout(stage.wait())),
        3 => drop(poll(it.wait_async())),
        _ => drop((it.is_set(), format!("{it:?}"))),
    }
}

fn condvar(it: &Condvar, op: u8, stage: &mut Stage<'_>) {
    // Nobody lies about the lock beside it.
    let mutex = Mutex::new(0_u32).expect("a mutex");
    let guard = || mutex.lock().expect("its guard");
    stage.free();
    match op % 5 {
        0 => drop(it.wait_timeout(guard(), stage.wait())),
        1 => drop(it.wait_while_timeout(guard(), stage.wait(), |value| *value == 0)),
        2 => {
            let mut future = Some(Box::pin(it.wait_async(guard())));
            nudge(&mut future);
            stage.meddle();
            stage.free();
            it.notify_one();
            nudge(&mut future);
            stage.meddle();
            stage.free();
        }
        3 => drop(it.notify(usize::from(op))),
        _ => drop((it.notify_all(), format!("{it:?}"))),
    }
}

fn barrier(it: &Barrier, op: u8, stage: &mut Stage<'_>) {
    stage.free();
    match op % 8 {
        0 => drop(it.try_wait()),
        1 => drop(it.wait_timeout(stage.wait())),
        2 => {
            let mut future = Some(Box::pin(it.wait_async()));
            nudge(&mut future);
            stage.meddle();
            stage.free();
            let _ = it.try_wait_with(|| {
                stage.meddle();
                stage.free();
            });
            stage.free();
            nudge(&mut future);
            stage.meddle();
            stage.free();
        }
        3 => it.abort(),
        4 => it.reset(),
        5 => {
            let wait = stage.wait();
            let _ = it.wait_timeout_with(wait, || {
                stage.meddle();
                stage.free();
            });
        }
        6 => drop((it.why_broken(), it.is_broken(), it.n_waiting(), it.parties())),
        _ => drop(format!("{it:?}")),
    }
}

fn once(it: &Once, op: u8, stage: &mut Stage<'_>) {
    let wait = stage.wait();
    match op % 4 {
        0 => drop(it.try_call_once(|_| stage.meddle())),
        1 => drop(it.call_once_timeout(wait, |_| stage.meddle())),
        2 => drop(poll(it.call_once_async(|_| async {}))),
        _ => drop((it.is_completed(), format!("{it:?}"))),
    }
}

fn once_value(it: &OnceValue<[u8; 12]>, op: u8, stage: &mut Stage<'_>) {
    let wait = stage.wait();
    let mut make = |_| {
        stage.meddle();
        [3; 12]
    };
    match op % 6 {
        0 => drop(it.try_get_or_init(make)),
        1 => drop(it.get_or_init_timeout(wait, make)),
        2 => drop(poll(it.get_or_init_async(|_| async { [4; 12] }))),
        3 => drop(it.set(make(None))),
        4 => drop(it.get()),
        _ => drop((it.is_completed(), format!("{it:?}"))),
    }
}

fn value<T: polypool_ipc::Plain + std::fmt::Debug>(it: &Value<T>, op: u8, stage: &mut Stage<'_>) {
    match op % 8 {
        0 => {
            if let Some(mut guard) = it.try_lock() {
                *guard = T::new_zeroed();
                stage.meddle();
                if op > 32 {
                    guard.discard();
                }
            }
        }
        1 => drop(it.lock_timeout(stage.wait()).map(|guard| *guard)),
        2 => drop(poll(it.lock_async()).map(|guard| *guard)),
        3 => drop(it.try_with(|_| stage.meddle())),
        4 => drop(it.with_timeout(stage.wait(), |value| *value)),
        5 => {
            stage.free();
            let now = it.get();
            let _ = it.compare_exchange(now, T::new_zeroed());
        }
        6 => {
            stage.free();
            it.set(T::new_zeroed());
            it.replace(it.with(|value| *value));
        }
        _ => {
            stage.free();
            drop(format!("{it:?}"));
        }
    }
}

fn array<T: polypool_ipc::Plain + std::fmt::Debug>(it: &Array<T>, op: u8, stage: &mut Stage<'_>) {
    let change = |mut slice: ArrayGuard<'_, T>, stage: &mut Stage<'_>| {
        if op & 1 == 0 {
            slice.fill(T::new_zeroed());
        }
        stage.meddle();
        if op & 2 == 0 {
            slice.repair();
            slice.reverse();
        }
        drop(format!("{slice:?}"));
        // Nobody gets a second slice meanwhile.
        assert!(guard(it.try_lock()).is_none(), "two slices of the same memory");
        stage.meddle();
    };
    let index = usize::from(op / 8);
    match op % 8 {
        0 => {
            let slice = guard(it.try_lock());
            let _ = slice.map(|slice| change(slice, stage));
        }
        1 => {
            let slice = guard(it.lock_timeout(stage.wait()));
            let _ = slice.map(|slice| change(slice, stage));
        }
        2 => {
            let slice = poll(it.lock_async()).and_then(guard);
            let _ = slice.map(|slice| change(slice, stage));
        }
        3 => {
            stage.free();
            let _ = it.get(index).and_then(|value| it.set(index, value));
        }
        4 => {
            stage.free();
            let _ = it.with_element(index, |_| stage.meddle());
        }
        5 => {
            stage.free();
            let mut elements = [T::new_zeroed(); 2];
            let _ = it.load_from(index, &mut elements);
            stage.free();
            let _ = it.store_to(index, &elements);
        }
        6 => {
            stage.free();
            drop((it.to_vec(), it.is_poisoned(), it.with(|slice| slice.len())));
        }
        _ => {
            stage.free();
            let _ = poll(it.with_element_async(index, |value| *value));
            drop(format!("{it:?}"));
        }
    }
}

/// Memory that isn't sealed, as that with a name is: with the content of that which is.
fn unsealed<H: Serialize + DeserializeOwned>(made: H) -> std::io::Result<H> {
    let (bytes, luggage) = pack(|| serde_json::to_vec(&made).expect("a handle in JSON"));
    let from = File::from(own(luggage.fds().next().expect("its memory")));
    let mut content = vec![0; from.metadata()?.len() as usize];
    from.read_exact_at(&mut content, 0)?;
    let to = File::from(memfd_create("open", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    to.write_all_at(&content, 0)?;
    let luggage = Luggage::new(vec![to.into()]);
    Ok(unpack(&luggage, || serde_json::from_slice(&bytes)).expect("a handle of memory that isn't sealed"))
}

fn shared_memory() -> std::io::Result<SharedMemory> {
    unsealed(SharedMemory::new(10_000)?)
}

fn bytes(it: &SharedMemory, op: u8, stage: &mut Stage<'_>) {
    use std::io::{Read, Seek, SeekFrom, Write};
    let offset = usize::from(op) * 160;
    match op % 6 {
        0 => drop(it.read::<[u64; 3]>(offset)),
        1 => drop(it.write(offset, &[1_u16, 2, 3])),
        2 => drop(it.to_vec()),
        3 => {
            let mut cursor = it.cursor();
            let _ = cursor.seek(SeekFrom::Start(offset as u64));
            stage.meddle();
            let _ = cursor.read(&mut [0; 100]);
            let _ = cursor.write(&[1; 100]);
        }
        4 => {
            let _ = it.fill(op);
            let _ = it.as_atomic_bytes().last().map(|byte| byte.load(Ordering::Relaxed));
            let _ = it.as_atomic_u64s().last().map(|word| word.fetch_add(1, Ordering::Relaxed));
        }
        _ => drop((it.is_lost(), format!("{it:?}"))),
    }
}

fn shared_list() -> std::io::Result<SharedList> {
    let items = [ListItem::from(5), "text".into(), b"bytes".into(), ListItem::None, true.into(), 1.5.into()];
    unsealed(SharedList::builder().room(24).create(items)?)
}

fn list(it: &SharedList, op: u8, stage: &mut Stage<'_>) {
    let index = usize::from(op / 8);
    stage.free_list(it);
    match op % 6 {
        0 => drop(it.get(index)),
        1 => drop(it.set(index, "something else")),
        2 => drop(it.update(index, |item| {
            stage.meddle();
            *item = ListItem::Bytes(vec![1; usize::from(op)]);
        })),
        3 => drop(it.to_vec()),
        4 => drop((it.count(5), it.index("text"))),
        _ => drop(format!("{it:?}")),
    }
}

fn queue_options(input: &[u8]) -> QueueOptions {
    match input.last().map_or(0, |byte| byte % 4) {
        0 => QueueOptions::new().memory(4 << 10),
        1 => QueueOptions::new().memory(4 << 10).items(2),
        2 => QueueOptions::new().memory(256 << 10),
        _ => QueueOptions::new().memory(4 << 20).items(1_000),
    }
}

fn queue(it: &Queue<Item>, op: u8, stage: &mut Stage<'_>) {
    stage.free();
    let wait = stage.wait();
    match op % 12 {
        0 => drop(it.try_put(item(stage))),
        1 => drop(it.try_get()),
        2 => drop(it.put_timeout(item(stage), wait)),
        3 => drop(it.get_timeout(wait)),
        4 => drop(it.try_put_many((0..op).map(|_| item(stage)).collect())),
        5 => drop(it.try_get_many(usize::from(op) + 1)),
        6 => drop(poll(it.put_async(item(stage)))),
        7 => drop(poll(it.get_async())),
        8 => drop(poll(it.get_many_async(1_000))),
        9 => {
            if op > 32 {
                it.close();
            }
        }
        10 => drop((it.len(), it.is_empty(), it.is_full(), it.capacity(), it.is_closed(), format!("{it:?}"))),
        _ => {
            // Large ones one after another, so that the ring grows and wraps round.
            for _ in 0..8 {
                stage.free();
                let large = Item { number: 0, text: String::new(), bytes: vec![1; 1_000 << (op / 12)], more: None };
                if it.try_put(large).is_err() {
                    stage.free();
                    let _ = it.try_get();
                }
            }
        }
    }
}

fn joinable(it: &JoinableQueue<Item>, op: u8, stage: &mut Stage<'_>) {
    stage.free();
    match op % 8 {
        0 => {
            if let Ok(task) = it.try_get_task() {
                stage.meddle();
                stage.free();
                match op / 16 {
                    0 => drop(task.finish()),
                    1 => drop(task.put_back()),
                    _ => {}
                }
            }
        }
        1 => drop(it.task_done()),
        2 => drop((it.unfinished(), it.abandoned(), it.try_join())),
        3 => drop(it.join_timeout(stage.wait())),
        4 => drop(poll(it.join_async())),
        5 => drop(it.get_task_timeout(stage.wait())),
        6 => drop(format!("{it:?}")),
        _ => queue(it, op / 4, stage),
    }
}

fn byte_queue(it: &ByteQueue, op: u8, stage: &mut Stage<'_>) {
    stage.free();
    let wait = stage.wait();
    let message = vec![9; usize::from(op) * usize::from(op)];
    match op % 8 {
        0 => drop(it.try_put(&message)),
        1 => drop(it.try_get()),
        2 => drop(it.put_timeout(&message, wait)),
        3 => drop(it.get_timeout(wait)),
        4 => drop(poll(it.put_async(&message))),
        5 => drop(poll(it.get_async())),
        6 => {
            if op > 48 {
                it.close();
            }
        }
        _ => drop((it.len(), it.is_full(), it.capacity(), it.is_closed(), format!("{it:?}"))),
    }
}

fn stream((sender, receiver): &(FrameSender, FrameReceiver), op: u8, stage: &mut Stage<'_>) {
    let mut to = Vec::new();
    let long = vec![5; usize::from(op) * 100];
    let parts: &[&[u8]] = &[b"head", &long];
    let frame = Frame::new(parts).kind(op);
    receiver.set_max_len(1 << 20);
    match op % 10 {
        0 | 1 => drop(sender.try_send(&frame)),
        2 | 3 => drop(receiver.try_recv(&mut to)),
        4 => drop(sender.send_timeout(&frame, stage.wait())),
        5 => drop(receiver.recv_timeout(&mut to, stage.wait())),
        6 => {
            // Half of it, then given up.
            let mut future = Some(Box::pin(sender.send_async(&frame)));
            nudge(&mut future);
            stage.meddle();
            let _ = receiver.try_recv(&mut to);
            nudge(&mut future);
        }
        7 => drop(poll(receiver.recv_async(&mut to))),
        8 => {
            let fd = OwnedFd::from(stage.memory.try_clone().expect("a descriptor"));
            let _ = sender.try_send(&frame.luggage(&Luggage::new(vec![fd])));
        }
        _ => {
            let _ = (receiver.poll(Duration::ZERO), receiver.has_buffered(), sender.is_closed());
            drop(format!("{sender:?} {receiver:?}"));
            stage.free();
            let _ = sender.flush();
            if op == 59 {
                sender.close();
            } else if op == 49 {
                receiver.close();
            }
        }
    }
}

fn pipe((sender, receiver): &(PipeSender<Parcel>, PipeReceiver<Parcel>), op: u8, stage: &mut Stage<'_>) {
    let fd = || Fd::new(own(stage.memory.as_fd()));
    receiver.set_max_len(1 << 20);
    match op % 8 {
        0 => drop(sender.try_send(&(1, None))),
        1 => drop(sender.try_send(&(2, Some(fd())))),
        2 => drop(receiver.try_recv()),
        3 => drop(receiver.recv_timeout(stage.wait())),
        4 => drop(sender.try_send_bytes(&vec![1; usize::from(op) * 50])),
        5 => drop(receiver.try_recv_bytes(usize::from(op) * 10)),
        6 => drop(poll(receiver.recv_async())),
        _ => drop((receiver.poll(stage.wait()), sender.is_closed(), format!("{sender:?} {receiver:?}"))),
    }
}

fn connection((one, two): &(Connection<Item, Parcel>, Connection<Parcel, Item>), op: u8, stage: &mut Stage<'_>) {
    one.set_max_len(1 << 20);
    two.set_max_len(1 << 20);
    match op % 8 {
        0 | 1 => drop(one.try_send(&item(stage))),
        2 | 3 => drop(two.try_recv()),
        4 => drop(two.try_send(&(1, None))),
        5 => drop(one.recv_timeout(stage.wait())),
        6 => drop((one.poll(Duration::ZERO), two.poll(Duration::ZERO))),
        _ => drop((one.is_closed(), format!("{one:?} {two:?}"))),
    }
}

/// A connection through shared memory, which is no handle: its ends come by their descriptors, one from each.
fn ring_socket(input: &[u8]) -> std::io::Result<()> {
    let (here, there) = UnixStream::pair()?;
    let (ours, [memory, room]) = RingSocket::create(4_096)?;
    let mut stage = Stage::new(input, File::from(memory.try_clone()?), NONE);
    stage.meddle();
    let Ok(theirs) = RingSocket::join(vec![memory, room]) else { return Ok(()) };
    let ((mut reader, mut writer), (mut their_reader, mut their_writer)) = (ours.split(), theirs.split());
    let mut buffer = [0; 3_000];
    while let Some(command) = stage.command() {
        if command < 0x80 {
            stage.lie(command);
            continue;
        }
        let long = vec![1; usize::from(command & 0x3f) * 64];
        let parts: &[&[u8]] = &[b"head", &long];
        let until = Some(Instant::now() + stage.wait());
        let _ = match command % 6 {
            0 => writer.write(&here, parts, until),
            1 => their_reader.read(&there, &mut buffer, until).map(drop),
            2 => their_writer.write(&there, parts, until),
            3 => reader.read(&here, &mut buffer, until).map(drop),
            4 => {
                drop((
                    reader.has_buffered(),
                    reader.sleeps(),
                    their_reader.has_buffered(),
                    format!("{reader:?} {writer:?}"),
                ));
                Ok(())
            }
            _ => reader.read(&here, &mut buffer[..8], until).map(drop),
        };
    }
    Ok(())
}
