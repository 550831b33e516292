//! Boards and the seats on them: how many there can be, whose they are, and that no process is left on one that has
//! been killed while it left.

#![cfg(any(target_os = "linux", target_os = "android"))]

#[path = "common/family.rs"]
mod family;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use family::{LIMIT, Peer, child};
use polypool_ipc::{
    Array, AtomicValue, Barrier, ByteQueue, Condvar, Event, Lock, LockError, Luggage, Mutex, Once, Queue, RwLock,
    Semaphore, SharedList, SharedMemory, Value, pack, unpack,
};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use serde::de::DeserializeOwned;

polypool_ipc::before_main!(roles);

fn roles() {
    family::run_roles(&[("joiner", joiner), ("comer", comer), ("maker", maker)]);
}

fn fds(handle: &impl Serialize) -> (Vec<u8>, Vec<OwnedFd>) {
    let (bytes, luggage) = pack(|| serde_json::to_vec(handle).unwrap());
    (bytes, luggage.fds().map(|fd| fd.try_clone_to_owned().unwrap()).collect())
}

/// The memory of the board on which the holders of an object sit.
fn board_of(handle: &impl Serialize) -> File {
    File::from(fds(handle).1.pop().unwrap())
}

/// A board, as another process would have made it.
fn strange_board() -> OwnedFd {
    let fd = rustix::fs::memfd_create("board", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&fd, 64 + 4_096 * 64).unwrap();
    rustix::io::pwrite(&fd, b"pp-board", 0).unwrap();
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).unwrap();
    fd
}

const BOARDS: usize = 2_048;

fn joiner(parent: &Peer) {
    let lock: Lock = parent.recv();
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let _held = lock.lock().unwrap();
    // The board of the lock is the first one, so the last in the list that the kernel goes through.
    let event = Event::new().unwrap();
    let memory = || fds(&event).1.swap_remove(0);
    let mut all = Vec::new();
    let refused = loop {
        let luggage = Luggage::new(vec![memory(), strange_board()]);
        match unpack(&luggage, || serde_json::from_str::<Event>("[0, 1]")) {
            Ok(event) => all.push(event),
            Err(error) => break error.to_string(),
        }
        assert!(all.len() <= 2 * BOARDS, "there is no end to it");
    };
    // With one given up, there is room for another one.
    all.pop();
    let luggage = Luggage::new(vec![memory(), strange_board()]);
    all.push(unpack(&luggage, || serde_json::from_str::<Event>("[0, 1]")).unwrap());
    parent.send(&(all.len(), refused));
    parent.recv::<()>();
}

#[test]
fn a_process_sits_on_no_more_boards_than_the_kernel_looks_at() {
    let lock = Lock::new(()).unwrap();
    let mut joiner = child("joiner", &lock);
    let (joined, refused): (usize, String) = joiner.recv();
    // The lock's and its own are boards too.
    assert_eq!(joined, BOARDS - 2, "{refused}");
    assert!(refused.contains("objects of 2048 processes already"), "{refused}");
    assert!(matches!(lock.try_lock(), Err(LockError::WouldBlock)));
    joiner.kill();
    let taken = lock.lock_timeout(LIMIT);
    assert!(matches!(taken, Err(LockError::Poisoned { .. })), "its death wasn't noticed: {taken:?}");
}

fn comer(parent: &Peer) {
    let (bytes, luggage) = {
        let lock: Lock = parent.recv();
        pack(|| serde_json::to_vec(&lock).unwrap())
    };
    parent.send("comes and goes");
    loop {
        let lock: Lock = unpack(&luggage, || serde_json::from_slice(&bytes)).unwrap();
        drop(lock);
    }
}

#[test]
fn nobody_stays_on_a_board_who_is_killed_while_coming_or_going() {
    let lock = Lock::new(()).unwrap();
    let board = board_of(&lock);
    let begun = Instant::now();
    for round in 0..60 {
        let mut comer = child("comer", &lock);
        comer.expect("comes and goes");
        // Anywhere.
        std::thread::sleep(Duration::from_micros(1_000 + 37 * round));
        comer.kill();
        let alive: Vec<u32> = (1..=4_095)
            .filter_map(|slot| {
                let mut word = [0; 4];
                board.read_exact_at(&mut word, 64 + slot * 64 + 8).unwrap();
                let word = u32::from_le_bytes(word);
                // Neither dead, by the kernel's mark, nor free.
                (word & 0x4000_0000 == 0 && word & 0x3fff_ffff != 0).then_some(word & 0x3fff_ffff)
            })
            .collect();
        // Other tests have their children on it.
        let threads = |tid: &u32| std::path::Path::new(&format!("/proc/{tid}")).exists();
        assert!(!alive.is_empty() && alive.iter().all(threads), "it's still there: {alive:?}");
        if begun.elapsed() > LIMIT / 2 {
            break;
        }
    }
}

fn maker(parent: &Peer) {
    let first: Lock = parent.recv();
    // It sits on another one's board; for what it makes itself it makes its own.
    parent.send(&(&first, Value::new(1_u64).unwrap(), Lock::new(()).unwrap()));
    parent.recv::<()>();
}

#[test]
fn nobody_uses_the_board_of_another_one_for_its_own_objects() {
    let ours = Lock::new(()).unwrap();
    let maker = child("maker", &ours);
    let (back, theirs, other): (Lock, Value<u64>, Lock) = maker.recv();
    let inode = |file: File| file.metadata().unwrap().ino();
    let our_board = inode(board_of(&ours));
    assert_eq!(our_board, inode(board_of(&back)));
    let their_board = inode(board_of(&theirs));
    assert_ne!(our_board, their_board);
    assert_eq!(their_board, inode(board_of(&other)));
    // Having received one, we don't use it either.
    assert_eq!(our_board, inode(board_of(&Value::new(1_u64).unwrap())));
    maker.send(&());
    maker.join();
}

/// What isn't memory, or could be taken away from under those who use it.
fn strange_descriptors(whole: &OwnedFd) -> Vec<(&'static str, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let (one, two) = std::os::unix::net::UnixStream::pair().unwrap();
    let file = std::env::temp_dir().join(format!("polypool-presence-{}", std::process::id()));
    std::fs::write(&file, [0; 8192]).unwrap();
    let on_disk = File::options().read(true).write(true).open(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let unsealed = rustix::fs::memfd_create("unsealed", MemfdFlags::CLOEXEC).unwrap();
    let len = rustix::fs::fstat(whole).unwrap().st_size.cast_unsigned();
    rustix::fs::ftruncate(&unsealed, len).unwrap();
    let mut content = vec![0; len.min(1 << 20) as usize];
    rustix::io::pread(whole, &mut content, 0).unwrap();
    rustix::io::pwrite(&unsealed, &content, 0).unwrap();
    vec![
        ("a pipe", reader),
        ("the other end", writer),
        ("a socket", one.into()),
        ("the other socket", two.into()),
        ("/dev/null", File::open("/dev/null").unwrap().into()),
        ("/dev/zero", File::options().read(true).write(true).open("/dev/zero").unwrap().into()),
        ("a folder", File::open("/").unwrap().into()),
        ("an event", rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap()),
        ("a file", on_disk.into()),
        ("/proc", File::open("/proc/self/stat").unwrap().into()),
        ("the same memory, not sealed", unsealed),
    ]
}

fn refuses<T: Serialize + DeserializeOwned>(handle: T) {
    let (bytes, whole) = fds(&handle);
    for place in 0..whole.len() {
        for (name, fd) in strange_descriptors(&whole[place]) {
            let mut fds: Vec<OwnedFd> = whole.iter().map(|fd| fd.as_fd().try_clone_to_owned().unwrap()).collect();
            fds[place] = fd;
            let opened = unpack(&Luggage::new(fds), || serde_json::from_slice::<T>(&bytes));
            let kind = std::any::type_name::<T>();
            // What can have a name isn't sealed then, so that will do.
            let will_do = ["SharedMemory", "SharedList"].iter().any(|it| kind.ends_with(it)) && name.contains("sealed");
            assert_eq!(opened.is_ok(), will_do, "{name} as part {place} of {kind}");
        }
    }
    unpack(&Luggage::new(whole), || serde_json::from_slice::<T>(&bytes)).unwrap();
}

#[test]
fn a_descriptor_that_is_no_memory_is_no_object() {
    refuses(Value::new(1_u64).unwrap());
    refuses(Array::<u64>::new(3).unwrap());
    refuses(AtomicValue::new(1_u64).unwrap());
    refuses(Mutex::new(1_u64).unwrap());
    refuses(RwLock::new(1_u64).unwrap());
    refuses(Semaphore::new(1).unwrap());
    refuses(Event::new().unwrap());
    refuses(Condvar::new().unwrap());
    refuses(Barrier::new(1).unwrap());
    refuses(Once::new().unwrap());
    refuses(Queue::<u64>::unbounded().unwrap());
    refuses(ByteQueue::unbounded().unwrap());
    refuses(SharedList::new([1.into()]).unwrap());
    refuses(SharedMemory::new(4096).unwrap());
}
