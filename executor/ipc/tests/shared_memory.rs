//! `SharedMemory`, `SharedList` and `SharedMemoryScope`: with and without names, between processes, damaged and
//! truncated.

#![cfg(any(target_os = "linux", target_os = "android"))]

#[path = "common/family.rs"]
mod family;

use std::fs::File;
use std::future::Future;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use family::{LIMIT, Peer, child};
use polypool_ipc::{ListError, ListItem, Luggage, SharedList, SharedMemory, SharedMemoryScope, pack, unpack};
use serde::Serialize;
use serde::de::DeserializeOwned;

polypool_ipc::before_main!(roles);

fn roles() {
    family::run_roles(&[
        ("writer", writer),
        ("renamer", renamer),
        ("attacher", attacher),
        ("creator", creator),
        ("scope_owner", scope_owner),
        ("list_adder", list_adder),
        ("list_smearer", list_smearer),
        ("list_holder", list_holder),
        ("truncated", truncated),
        ("sigbus", sigbus),
        ("counts_fds", counts_fds),
        ("list_forker", list_forker),
        ("mapping_forker", mapping_forker),
    ]);
}

/// A name of this test's own, and its file, which is removed at the end whatever happens.
struct TestName(String);

impl TestName {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        TestName(format!("polypool-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed)))
    }

    fn file(&self) -> PathBuf {
        PathBuf::from("/dev/shm").join(&self.0)
    }
}

impl Drop for TestName {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.file());
    }
}

fn travelled<T: Serialize + DeserializeOwned>(handle: &T) -> T {
    let (bytes, luggage) = pack(|| serde_json::to_vec(handle).unwrap());
    let fds = luggage.fds().map(|fd| fd.try_clone_to_owned().unwrap()).collect();
    unpack(&Luggage::new(fds), || serde_json::from_slice(&bytes)).unwrap()
}

fn memory_of(handle: &impl Serialize) -> File {
    let (_, luggage) = pack(|| serde_json::to_vec(handle).unwrap());
    File::from(luggage.fds().next().unwrap().as_fd().try_clone_to_owned().unwrap())
}

fn items(items: impl IntoIterator<Item = impl Into<ListItem>>) -> Vec<ListItem> {
    items.into_iter().map(Into::into).collect()
}

const SHORT: Duration = Duration::from_millis(20);

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<R>(future: impl Future<Output = R>) -> R {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let until = Instant::now() + LIMIT;
    loop {
        if let Poll::Ready(result) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return result;
        }
        assert!(Instant::now() < until, "a future is pending for {LIMIT:?}");
        std::thread::park_timeout(LIMIT);
    }
}

fn is_pending(future: impl Future) -> bool {
    pin!(future).poll(&mut Context::from_waker(Waker::noop())).is_pending()
}

// ---- SharedMemory

/// Sets the first value by a future that has to wait, as a thread holds the slot.
fn set_while_held(list: &SharedList, number: i32) {
    let (held, is_held) = std::sync::mpsc::channel();
    let (go, goes) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            list.update(0, |_| {
                held.send(()).unwrap();
                goes.recv().unwrap();
            })
        });
        is_held.recv().unwrap();
        let mut set = Box::pin(list.set_async(0, number));
        assert!(is_pending(set.as_mut()));
        go.send(()).unwrap();
        block_on(set).unwrap();
    });
}

#[test]
fn bytes_are_read_and_written() {
    let memory = SharedMemory::new(10_000).unwrap();
    assert_eq!((memory.len(), memory.name()), (10_000, None));
    assert_eq!(memory.to_vec().unwrap(), [0; 10_000]);
    // Odd places and lengths, below and above what is copied as a block.
    for (offset, count) in [(0, 1), (3, 13), (1, 511), (77, 600), (9, 9991), (10_000, 0)] {
        let data: Vec<u8> = (0..count).map(|n| (n * 7 + offset) as u8).collect();
        memory.fill(0xee).unwrap();
        memory.write_at(offset, &data).unwrap();
        let mut back = vec![0; count];
        memory.read_at(offset, &mut back).unwrap();
        assert_eq!(back, data);
        let all = memory.to_vec().unwrap();
        assert!(all[..offset].iter().chain(&all[offset + count..]).all(|byte| *byte == 0xee));
    }
    memory.write(16, &[1.5_f64, -2.5]).unwrap();
    assert_eq!(memory.read::<f64>(24).unwrap(), -2.5);
    assert_eq!(memory.read::<[f64; 2]>(16).unwrap(), [1.5, -2.5]);
    memory.write(1, &0x0102_0304_u32).unwrap();
    assert_eq!(memory.read::<u32>(1).unwrap(), 0x0102_0304, "unaligned");
}

#[test]
fn what_is_outside_of_the_memory_is_refused() {
    let memory = SharedMemory::new(100).unwrap();
    for (offset, count) in [(100, 1), (99, 2), (usize::MAX, 2), (0, 101)] {
        let error = memory.read_at(offset, &mut vec![0; count]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert_eq!(memory.write_at(offset, &vec![0; count]).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    assert!(memory.read::<u64>(93).is_err() && memory.write(93, &0_u64).is_err());
}

#[test]
fn the_memory_is_seen_in_place() {
    let memory = SharedMemory::new(21).unwrap();
    assert_eq!(
        (memory.as_atomic_bytes().len(), memory.as_atomic_u32s().len(), memory.as_atomic_u64s().len()),
        (21, 5, 2)
    );
    memory.as_atomic_u64s()[1].store(u64::from_ne_bytes(*b"abcdefgh"), Relaxed);
    memory.as_atomic_bytes()[20].fetch_add(7, Relaxed);
    assert_eq!(memory.to_vec().unwrap()[8..], *b"abcdefgh\0\0\0\0\x07");
    assert_eq!(SharedMemory::new(3).unwrap().as_atomic_u64s().len(), 0);
}

#[test]
fn a_cursor_is_like_a_file() {
    let memory = SharedMemory::new(10).unwrap();
    let mut cursor = memory.cursor();
    cursor.write_all(b"0123456789").unwrap();
    assert_eq!(cursor.write(b"x").unwrap(), 0);
    assert_eq!(cursor.write_all(b"x").unwrap_err().kind(), ErrorKind::WriteZero);
    assert_eq!(cursor.seek(SeekFrom::End(-4)).unwrap(), 6);
    let mut rest = String::new();
    cursor.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "6789");
    assert_eq!(cursor.seek(SeekFrom::Start(u64::MAX)).unwrap(), u64::MAX);
    assert_eq!(cursor.read(&mut [0; 4]).unwrap(), 0);
    assert!(cursor.seek(SeekFrom::Current(1)).is_err());
    cursor.rewind().unwrap();
    assert!(cursor.seek(SeekFrom::Current(-1)).is_err());
    assert_eq!(cursor.position(), 0);
}

#[test]
fn impossible_memory_is_refused() {
    let name = TestName::new();
    assert_eq!(SharedMemory::new(0).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(SharedMemory::create_new(&name.0, 0).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(SharedMemory::new(usize::MAX).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert!(SharedMemory::create_new(&name.0, isize::MAX as usize).is_err());
    assert!(!name.file().exists(), "nothing is left of a failure");
    for bad in ["", ".", "..", "a/b", "/a", "a\0b", &"x".repeat(256)] {
        for error in [
            SharedMemory::create_new(bad, 10).unwrap_err(),
            SharedMemory::create(bad, 10).unwrap_err(),
            SharedMemory::open(bad).unwrap_err(),
            SharedMemory::unlink_name(bad).unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad:?}: {error}");
            assert!(error.to_string().contains("can't name shared memory"), "{error}");
        }
    }
    assert_eq!(SharedMemory::new(1).unwrap().unlink().unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn a_name_is_created_opened_and_unlinked_once() {
    let name = TestName::new();
    assert_eq!(SharedMemory::open(&name.0).unwrap_err().kind(), ErrorKind::NotFound);
    let memory = SharedMemory::create_new(&name.0, 100).unwrap();
    assert_eq!(memory.name(), Some(&*name.0));
    let error = SharedMemory::create_new(&name.0, 100).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert!(error.to_string().contains(&name.0), "{error}");
    memory.write_at(50, b"here").unwrap();
    for other in [SharedMemory::open(&name.0).unwrap(), SharedMemory::create(&name.0, 100).unwrap()] {
        assert!(other.is_same(&memory) && other.len() == 100);
        assert_eq!(other.to_vec().unwrap()[50..54], *b"here");
    }
    assert_eq!(SharedMemory::create(&name.0, 101).unwrap_err().kind(), ErrorKind::AlreadyExists);

    memory.unlink().unwrap();
    assert!(!name.file().exists());
    assert_eq!(memory.unlink().unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(SharedMemory::unlink_name(&name.0).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(SharedMemory::open(&name.0).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(memory.to_vec().unwrap()[50..54], *b"here", "those who have it keep it");

    // The name belongs to another one now, which the first handle doesn't take away.
    let next = SharedMemory::create(&name.0, 7).unwrap();
    assert_eq!(memory.unlink().unwrap_err().kind(), ErrorKind::NotFound);
    drop(next);
    assert!(name.file().exists(), "a name stays");
    SharedMemory::unlink_name(&name.0).unwrap();
}

fn renamer(parent: &Peer) {
    let name: String = parent.recv();
    let mut made = 0;
    let until = Instant::now() + Duration::from_millis(1500);
    while Instant::now() < until {
        // Taken by the other process at this moment; or ours until we take it away, whatever the others do with theirs.
        let Ok(memory) = SharedMemory::create_new(&name, 8) else { continue };
        made += 1;
        assert!(SharedMemory::open(&name).expect("somebody took our name away").is_same(&memory));
        let unlinked: usize = std::thread::scope(|scope| {
            let unlink = || memory.unlink().is_ok();
            let others = [scope.spawn(unlink), scope.spawn(unlink)];
            others.into_iter().map(|other| usize::from(other.join().unwrap())).sum()
        });
        assert_eq!(unlinked, 1, "somebody took our name away, or we took it twice");
    }
    parent.send(&made);
}

#[test]
fn a_name_that_is_created_and_unlinked_by_many_is_only_taken_from_its_own_memory() {
    let name = TestName::new();
    let children: Vec<_> = (0..3).map(|_| child("renamer", &name.0)).collect();
    let made: u64 = children.iter().map(|child| child.recv::<u64>()).sum();
    assert!(made > 0);
    children.into_iter().for_each(|child| child.join());
}

#[test]
fn who_unlinks_a_name_waits_for_another_one_who_does() {
    let name = TestName::new();
    let memory = SharedMemory::create_new(&name.0, 8).unwrap();
    let file = File::open(name.file()).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| SharedMemory::unlink_name(&name.0).is_ok());
        assert_eq!(memory.unlink().unwrap_err().kind(), ErrorKind::ResourceBusy);
        assert!(name.file().exists());
        drop(file);
        // It has waited as long as we have, more or less.
        let unlinked = waits.join().unwrap();
        assert_ne!(unlinked, name.file().exists());
    });
    assert!(memory.unlink().is_ok() || !name.file().exists());
}

#[test]
fn a_name_goes_with_its_owner_if_that_is_wanted() {
    let name = TestName::new();
    let memory = SharedMemory::create_new(&name.0, 100).unwrap().unlink_on_drop();
    let clone = memory.clone();
    let attached = SharedMemory::open(&name.0).unwrap();
    drop(memory);
    assert!(name.file().exists());
    drop(clone);
    assert!(!name.file().exists());
    attached.fill(1).unwrap();

    let owner = SharedMemory::create_new(&name.0, 100).unwrap().unlink_on_drop();
    SharedMemory::unlink_name(&name.0).unwrap();
    let next = SharedMemory::create_new(&name.0, 100).unwrap();
    drop(owner);
    assert!(name.file().exists(), "it is another one's by now");
    next.unlink().unwrap();
}

fn writer(parent: &Peer) {
    let (anonymous, named): (SharedMemory, SharedMemory) = parent.recv();
    assert_eq!(anonymous.read::<u64>(8).unwrap(), 11);
    anonymous.write(8, &12_u64).unwrap();
    named.write(0, &13_u64).unwrap();
    parent.send(named.name().unwrap());
}

#[test]
fn handles_travel() {
    let name = TestName::new();
    let anonymous = SharedMemory::new(4096).unwrap();
    let named = SharedMemory::create_new(&name.0, 4096).unwrap().unlink_on_drop();
    anonymous.write(8, &11_u64).unwrap();
    let child = child("writer", &(&anonymous, &named));
    child.expect(&name.0);
    child.join();
    assert_eq!(anonymous.read::<u64>(8).unwrap(), 12);
    assert_eq!(named.read::<u64>(0).unwrap(), 13);
    assert!(name.file().exists(), "a handle that travelled owns no name");
    assert!(travelled(&anonymous).is_same(&anonymous) && travelled(&named).is_same(&named));
    drop(named);
    assert!(!name.file().exists());

    assert!(serde_json::to_vec(&anonymous).is_err());
    // Something that is no memory.
    let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
    let (bytes, _) = pack(|| serde_json::to_vec(&anonymous).unwrap());
    let opened = unpack(&Luggage::new(vec![socket.into()]), || serde_json::from_slice::<SharedMemory>(&bytes));
    assert!(opened.is_err());
}

fn attacher(parent: &Peer) {
    let name: String = parent.recv();
    let memory = SharedMemory::open(&name).unwrap();
    memory.write(0, &1_u64).unwrap();
    let list = SharedList::open(&format!("{name}-list")).unwrap();
    list.set(0, 5).unwrap();
    parent.send("attached");
    parent.recv::<String>();
}

#[test]
fn the_end_of_an_attacher_destroys_nothing() {
    let name = TestName::new();
    let list_name = TestName(format!("{}-list", name.0));
    let memory = SharedMemory::create_new(&name.0, 64).unwrap();
    let _list = SharedList::builder().name(&list_name.0).create([1.into()]).unwrap();
    for killed in [false, true] {
        memory.write(0, &0_u64).unwrap();
        let mut child = child("attacher", &name.0);
        child.expect("attached");
        if killed {
            child.kill();
        } else {
            child.send("go");
            assert!(child.wait().success());
        }
        assert_eq!(SharedMemory::open(&name.0).unwrap().read::<u64>(0).unwrap(), 1);
        assert_eq!(SharedList::open(&list_name.0).unwrap().get(0), Ok(ListItem::Int(5)));
    }
}

fn creator(parent: &Peer) {
    let name: String = parent.recv();
    let named = SharedMemory::create_new(&name, 64).unwrap();
    named.write_at(0, b"kept").unwrap();
    let (anonymous, _list) = (SharedMemory::new(1 << 20).unwrap(), SharedList::new([1.into()]).unwrap());
    anonymous.fill(1).unwrap();
    parent.send("made");
    parent.recv::<String>();
}

#[test]
fn after_a_kill_only_what_has_a_name_stays() {
    let name = TestName::new();
    let before: Vec<_> = std::fs::read_dir("/dev/shm").unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let mut child = child("creator", &name.0);
    child.expect("made");
    child.kill();
    let pid = child.id().to_string();
    // Others may come and go meanwhile, such as those of the other tests; nothing of the child's may.
    for entry in std::fs::read_dir("/dev/shm").unwrap() {
        let entry = entry.unwrap().file_name();
        assert!(before.contains(&entry) || !entry.to_string_lossy().contains(&pid), "{entry:?}");
    }
    assert_eq!(SharedMemory::open(&name.0).unwrap().to_vec().unwrap()[..4], *b"kept");
    SharedMemory::unlink_name(&name.0).unwrap();
}

fn truncated(parent: &Peer) {
    let name: String = parent.recv();
    let memory = SharedMemory::open(&name).unwrap();
    let list = SharedList::open(&format!("{name}-list")).unwrap();
    let anonymous = SharedMemory::new(100).unwrap();
    parent.send("attached");
    parent.expect("truncated");
    // Every page is gone: without a handler this is a SIGBUS.
    let error = memory.to_vec().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{error}");
    assert!(memory.is_lost());
    assert!(memory.fill(0).is_err() && memory.read::<u8>(0).is_err() && memory.write_at(0, b"x").is_err());
    assert_eq!(memory.as_atomic_bytes()[0].load(Relaxed), b'x', "what is left is this process's own");
    assert_eq!(list.get(0), Err(ListError::Lost));
    assert_eq!(list.set(0, 1), Err(ListError::Lost));
    assert_eq!(list.update(0, |_| ()), Err(ListError::Lost));
    // Everything else goes on.
    anonymous.fill(1).unwrap();
    drop((memory, list));
    assert!(SharedMemory::open(&name).is_err());
    assert!(SharedList::open(&format!("{name}-list")).is_err());
    let again = SharedMemory::create_new(&format!("{name}-again"), 5000).unwrap().unlink_on_drop();
    again.fill(9).unwrap();
    assert_eq!(again.to_vec().unwrap(), [9; 5000]);
}

#[test]
fn truncated_memory_is_an_error_and_no_signal() {
    let name = TestName::new();
    let list_name = TestName(format!("{}-list", name.0));
    let _memory = SharedMemory::create_new(&name.0, 100_000).unwrap();
    let _list = SharedList::builder().name(&list_name.0).create([1.into()]).unwrap();
    let child = child("truncated", &name.0);
    child.expect("attached");
    for file in [name.file(), list_name.file()] {
        File::options().write(true).open(file).unwrap().set_len(0).unwrap();
    }
    child.send("truncated");
    child.join();
}

fn sigbus(parent: &Peer) {
    let (name, mine): (String, bool) = parent.recv();
    if mine {
        let _named = SharedMemory::create_new(&name, 10).unwrap().unlink_on_drop();
    }
    parent.send("ready");
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::BUS).unwrap();
    std::thread::park();
}

#[test]
fn other_sigbus_signals_still_end_the_process() {
    use std::os::unix::process::ExitStatusExt;
    for mine in [false, true] {
        let mut child = child("sigbus", &(TestName::new().0.clone(), mine));
        child.expect("ready");
        assert_eq!(child.wait().signal(), Some(7));
    }
}

#[test]
fn anonymous_memory_can_not_be_truncated() {
    let memory = SharedMemory::new(100).unwrap();
    let file = memory_of(&memory);
    assert!(file.set_len(0).is_err() && file.set_len(10_000).is_err());
    assert_eq!(file.metadata().unwrap().len(), 100);
}

// ---- SharedList

#[test]
fn a_list_holds_items_of_all_types() {
    let list = SharedList::new([
        "howdy".into(),
        (-273.154).into(),
        100.into(),
        ListItem::None,
        true.into(),
        b"bytes\0\0".into(),
        i64::MIN.into(),
    ])
    .unwrap();
    let expected = [
        ListItem::Str("howdy".into()),
        ListItem::Float(-273.154),
        ListItem::Int(100),
        ListItem::None,
        ListItem::Bool(true),
        ListItem::Bytes(b"bytes\0\0".to_vec()),
        ListItem::Int(i64::MIN),
    ];
    assert_eq!(list.to_vec().unwrap(), expected);
    assert_eq!(list.iter().len(), 7);
    assert_eq!(format!("{list:?}"), format!("{expected:?}"));
    // Any slot may take any type that fits.
    for index in 0..7 {
        for item in &expected {
            list.set(index, item.clone()).unwrap();
            assert_eq!(list.get(index).unwrap(), *item);
        }
    }
    assert_eq!(list.get(7), Err(list.set(7, 1).unwrap_err()));
    assert!(matches!(list.get(7), Err(ListError::OutOfRange { index: 7, len: 7, .. })));
    let empty = SharedList::new([]).unwrap();
    assert!(empty.is_empty() && empty.get(0).is_err() && travelled(&empty).is_empty());
}

#[test]
fn trailing_zeros_and_empty_things_are_kept() {
    let list = SharedList::builder().room(10).create(items(["", ""])).unwrap();
    for text in ["", "\0", "a\0\0", "\0a\0", "ende\0"] {
        list.set(0, text).unwrap();
        list.set(1, text.as_bytes()).unwrap();
        assert_eq!(list.get(0), Ok(text.into()));
        assert_eq!(list.get(1), Ok(text.as_bytes().into()));
    }
}

#[test]
fn what_is_too_long_is_refused_with_the_room_there_is() {
    let list = SharedList::new(["123456789".into(), 5.into()]).unwrap();
    assert_eq!((list.room(0), list.room(1)), (Ok(16), Ok(8)));
    let error = list.set(0, "x".repeat(17)).unwrap_err();
    assert!(matches!(error, ListError::TooLong { index: 0, needed: 17, room: 16, .. }));
    let error = list.update(1, |item| *item = vec![0_u8; 9].into()).unwrap_err();
    assert!(matches!(error, ListError::TooLong { index: 1, needed: 9, room: 8, .. }));
    assert_eq!(list.to_vec().unwrap(), ["123456789".into(), ListItem::Int(5)], "as they were");
    list.set(0, "é".repeat(8)).unwrap();
    assert!(list.set(0, "é".repeat(9)).is_err(), "bytes, not characters");
    assert!(SharedList::builder().room(usize::MAX).create([1.into()]).is_err());
    assert!(SharedList::builder().room(1 << 32).create([1.into()]).is_err());
}

#[test]
fn a_list_is_searched() {
    let list = SharedList::new([1.into(), "a".into(), 1.into(), 1.0.into()]).unwrap();
    assert_eq!(list.count(1), Ok(2));
    assert_eq!((list.index("a"), list.index("b")), (Ok(Some(1)), Ok(None)));
    assert_eq!((list.contains(1.0), list.contains(())), (Ok(true), Ok(false)));
}

#[test]
fn a_panic_in_an_update_changes_nothing() {
    let list = SharedList::new([1.into()]).unwrap();
    let result = catch_unwind(AssertUnwindSafe(|| {
        list.update(0, |item| {
            *item = 2.into();
            panic!("in the middle");
        })
    }));
    assert!(result.is_err());
    assert_eq!(list.update(0, |item| item.clone()), Ok(ListItem::Int(1)));
}

fn list_adder(parent: &Peer) {
    let (list, times): (SharedList, u64) = parent.recv();
    for _ in 0..times {
        list.update(1, |item| {
            let ListItem::Int(n) = item else { panic!("not a number: {item:?}") };
            *n += 1;
        })
        .unwrap();
    }
}

#[test]
fn updates_are_not_lost_between_processes() {
    let name = TestName::new();
    for list in [
        SharedList::new(items([0, 0, 0])).unwrap(),
        SharedList::builder().name(&name.0).create(items([0, 0, 0])).unwrap().unlink_on_drop(),
    ] {
        let children: Vec<_> = (0..3).map(|_| child("list_adder", &(&list, 5000))).collect();
        for child in children {
            child.join();
        }
        assert_eq!(list.to_vec().unwrap(), items([0, 15_000, 0]));
    }
    assert!(!name.file().exists());
}

fn list_smearer(parent: &Peer) {
    let list: SharedList = parent.recv();
    for n in 0_usize.. {
        let byte = b'a' + (n % 26) as u8;
        let text = String::from_utf8(vec![byte; 1 + n % 999]).unwrap();
        let bytes = vec![byte; 999 - n % 999];
        if n % 2 == 0 { list.set(0, text) } else { list.set(0, bytes) }.unwrap();
    }
}

#[test]
fn no_torn_item_is_seen_while_writers_are_killed() {
    let list = SharedList::builder().room(1000).create(["a".into()]).unwrap();
    let check = |item: ListItem| {
        let bytes = match &item {
            ListItem::Str(text) => text.as_bytes(),
            ListItem::Bytes(bytes) => bytes,
            other => panic!("{other:?}"),
        };
        assert!(!bytes.is_empty() && bytes.iter().all(|byte| *byte == bytes[0]), "torn: {item:?}");
    };
    for round in 0..20 {
        let mut children = [0, 1].map(|_| child("list_smearer", &list));
        let first = list.get(0).unwrap();
        let until = Instant::now() + LIMIT;
        for n in 0.. {
            check(list.get(0).unwrap());
            if n > 300 + 100 * round && list.get(0).unwrap() != first {
                break;
            }
            assert!(Instant::now() < until, "nobody writes");
        }
        for child in &mut children {
            child.kill();
        }
        check(list.get(0).unwrap());
        // Nobody waits for the dead.
        list.set(0, "z").unwrap();
    }
}

fn list_holder(parent: &Peer) {
    let list: SharedList = parent.recv();
    list.update(0, |item| {
        *item = "half".into();
        parent.send("inside");
        parent.recv::<String>();
    })
    .unwrap();
}

#[test]
fn a_killed_writer_leaves_the_old_item_and_no_lock() {
    let name = TestName::new();
    for list in
        [SharedList::new(["old".into()]).unwrap(), SharedList::builder().name(&name.0).create(["old".into()]).unwrap()]
    {
        let mut holder = child("list_holder", &list);
        holder.expect("inside");
        assert_eq!(list.get(0), Ok("old".into()), "a reader waits for nobody");
        holder.kill();
        assert_eq!(list.update(0, |item| std::mem::replace(item, "new".into())), Ok("old".into()));
        assert_eq!(list.get(0), Ok("new".into()));
    }
    // The name outlives all handles, and so does what is in it.
    assert_eq!(SharedList::open(&name.0).unwrap().to_vec(), Ok(items(["new"])));
    SharedMemory::unlink_name(&name.0).unwrap();
}

#[test]
fn who_does_not_want_to_wait_for_a_slot_is_told() {
    let list = SharedList::new([1.into(), 2.into()]).unwrap();
    let add = |item: &mut ListItem| {
        let ListItem::Int(number) = item else { panic!("{item:?}") };
        *number += 1;
        *number
    };
    let holder = child("list_holder", &list);
    holder.expect("inside");
    assert_eq!(list.try_set(1, 3), Ok(()), "another slot");
    assert!(matches!(list.try_set(0, 9), Err(ListError::WouldBlock { index: 0, .. })));
    assert!(matches!(list.try_update(0, add), Err(ListError::WouldBlock { index: 0, .. })));
    assert!(matches!(list.set_timeout(0, 9, SHORT), Err(ListError::TimedOut { index: 0, .. })));
    assert!(matches!(list.update_timeout(0, SHORT, add), Err(ListError::TimedOut { index: 0, .. })));
    assert!(is_pending(list.set_async(0, 9)));
    let mut update = Box::pin(list.update_async(0, add));
    assert!(is_pending(update.as_mut()));
    assert_eq!(list.get(0), Ok(1.into()), "a reader waits for nobody, and nothing has happened");
    // The unlock wakes the future: that it looks again twice a second would do as well, but not for all of these.
    holder.send("go on");
    holder.join();
    assert_eq!(list.get(0), Ok("half".into()));
    list.set(0, 5).unwrap();
    assert_eq!(block_on(update), Ok(6));
    assert_eq!((list.try_set(0, 7), list.try_update(0, add)), (Ok(()), Ok(8)));
    assert_eq!((list.set_timeout(0, 8, SHORT), list.update_timeout(0, SHORT, add)), (Ok(()), Ok(9)));
    assert_eq!(block_on(list.set_async(0, 0)), Ok(()));
    assert_eq!(list.get(0), Ok(0.into()));
    // What can't be set at all is said before anybody waits.
    assert!(matches!(list.try_set(2, 0), Err(ListError::OutOfRange { index: 2, .. })));
    assert!(matches!(block_on(list.set_async(0, "much too long")), Err(ListError::TooLong { .. })));
}

#[test]
fn a_future_that_waits_for_a_slot_learns_of_the_writers_end() {
    let list = SharedList::new([1.into()]).unwrap();
    for kill in [false, true] {
        let mut holder = child("list_holder", &list);
        holder.expect("inside");
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            for number in 0..3 {
                let (list, sender) = (&list, sender.clone());
                scope.spawn(move || sender.send(block_on(list.set_async(0, number))).unwrap());
            }
            if kill {
                holder.kill();
            } else {
                holder.send("go on");
            }
            for _ in 0..3 {
                assert_eq!(receiver.recv_timeout(LIMIT), Ok(Ok(())));
            }
        });
        assert!(matches!(list.get(0), Ok(ListItem::Int(0..3))));
        list.set(0, 1).unwrap();
    }
}

#[test]
fn the_end_of_a_writer_wakes_the_future_that_waits_for_its_slot() {
    let list = SharedList::new([0.into()]).unwrap();
    let begun = Instant::now();
    // Futures look again by themselves now and then, but not often enough for so many.
    for round in 0..400 {
        set_while_held(&list, round);
        assert!(begun.elapsed() < LIMIT, "only {round} were woken");
    }
}

#[test]
fn a_named_list_is_created_opened_and_unlinked_once() {
    let name = TestName::new();
    assert_eq!(SharedList::open(&name.0).unwrap_err().kind(), ErrorKind::NotFound);
    let list = SharedList::builder().name(&name.0).room(20).create(["x".into()]).unwrap();
    let error = SharedList::builder().name(&name.0).create(["y".into()]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    let other = SharedList::open(&name.0).unwrap();
    assert!(other.is_same(&list) && other.room(0) == Ok(24) && other.name() == Some(&*name.0));
    list.unlink().unwrap();
    assert_eq!(list.unlink().unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(SharedList::new([]).unwrap().unlink().unwrap_err().kind(), ErrorKind::InvalidInput);
    let memory = SharedMemory::create_new(&name.0, 4096).unwrap().unlink_on_drop();
    assert_eq!(SharedList::open(&name.0).unwrap_err().kind(), ErrorKind::InvalidData, "no list: {memory:?}");
}

#[test]
fn damage_by_another_process_is_an_error() {
    let list = SharedList::new(["text".into(), 1.into()]).unwrap();
    let file = memory_of(&list);
    let handle = pack(|| serde_json::to_vec(&list).unwrap());
    // Head of 64 bytes, two rooms, then slot 0 at 128: lock (16), version, type and length, bytes.
    for (at, bytes) in [
        (128 + 24, &[9_u8][..]),                     // no such type
        (128 + 24, &[4, 0, 0, 0, 0xff, 0xff, 0, 0]), // longer than its room
        (128 + 24, &[4, 0, 0, 0, 4, 0, 0, 0, 0xff]), // no UTF-8
    ] {
        file.write_all_at(bytes, at).unwrap();
        assert_eq!(list.get(0), Err(list.update(0, |_| ()).unwrap_err()));
        assert!(matches!(list.get(0), Err(ListError::Damaged { index: 0, .. })), "{:?}", list.get(0));
        assert_eq!(list.get(1), Ok(ListItem::Int(1)));
    }
    list.set(0, "whole").unwrap();
    assert_eq!(list.get(0), Ok("whole".into()));
    // A lock of a process that doesn't exist, a version of any value.
    file.write_all_at(&[0xff; 24], 128).unwrap();
    list.set(0, "again").unwrap();
    assert_eq!(list.get(0), Ok("again".into()));
    // Sizes that lead outside: those who have the list keep to what they know, others don't get it.
    for (at, number) in
        [(64, 1_u64 << 31), (64, u64::MAX), (64, 7), (64, 0), (8, 3), (8, u64::MAX), (8, 1 << 40), (0, 0)]
    {
        let mut before = [0; 8];
        file.read_exact_at(&mut before, at).unwrap();
        file.write_all_at(&number.to_le_bytes(), at).unwrap();
        let opened = unpack(&handle.1, || serde_json::from_slice::<SharedList>(&handle.0));
        assert!(opened.unwrap_err().to_string().contains("does not hold a list"));
        assert_eq!(list.get(0), Ok("again".into()));
        file.write_all_at(&before, at).unwrap();
    }
}

// ---- SharedMemoryScope

fn memfds() -> usize {
    let links =
        std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    links.filter(|link| link.to_string_lossy().contains("memfd:polypool")).count()
}

fn scope_owner(parent: &Peer) {
    let () = parent.recv();
    assert_eq!(memfds(), 0);
    let scope = SharedMemoryScope::new();
    let memory = scope.memory(100).unwrap();
    let list = scope.list(items([1, 2])).unwrap();
    drop(travelled(&list));
    drop(list);
    assert_eq!(memfds(), 2, "the scope keeps them");
    scope.keep_list(&SharedList::builder().room(100).create(items([1])).unwrap());
    assert_eq!(memfds(), 3);
    scope.clear();
    assert_eq!(memfds(), 1, "but for the one that is in use");
    memory.fill(1).unwrap();
    drop(memory);
    let _memory = scope.memory(100).unwrap();
    drop(scope);
    drop(_memory);
    assert_eq!(memfds(), 0);
    assert_eq!(SharedMemoryScope::new().memory(0).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn a_scope_frees_what_it_made() {
    child("scope_owner", &()).join();
}

fn counts_fds(parent: &Peer) {
    let name: String = parent.recv();
    let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let maps = || std::fs::read_to_string("/proc/self/maps").unwrap().matches("/dev/shm").count();
    let before = count();
    for n in 0..100 {
        let memory = SharedMemory::new(1 + n).unwrap();
        let named = SharedMemory::create_new(&name, 1 + n).unwrap().unlink_on_drop();
        let more = (travelled(&memory), travelled(&named), SharedMemory::open(&name).unwrap(), memory.clone());
        more.2.fill(1).unwrap();
        assert!(SharedMemory::create_new(&name, 1 + n).is_err());
        let _list = SharedList::new(items([1])).unwrap();
    }
    assert_eq!((count(), maps()), (before, 0));
}

#[test]
fn no_descriptor_and_no_mapping_is_left() {
    child("counts_fds", &TestName::new().0).join();
}

/// What a plain `fork` does, and `body` in the child; waits for its end.
fn fork(body: impl FnOnce()) {
    // SAFETY: the C library sees to it that its child can go on with memory and threads, as does the crate for what is
    // its own.
    let pid = match unsafe { libc::fork() } {
        0 => {
            // SAFETY: a plain system call.
            unsafe { libc::alarm(10) };
            let ok = catch_unwind(AssertUnwindSafe(body)).is_ok();
            // SAFETY: ends the process without anything that its parent would do at its end.
            unsafe { libc::_exit(i32::from(!ok)) }
        }
        pid => pid,
    };
    assert!(pid > 0, "{}", std::io::Error::last_os_error());
    let mut status = 0;
    // SAFETY: the status is ours.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(status, 0, "the forked child failed, or hangs");
}

/// Nothing in this process has a board of presences.
fn list_forker(parent: &Peer) {
    parent.recv::<()>();
    let list = SharedList::new([0.into()]).unwrap();
    let contended = |number: i32| {
        set_while_held(&list, number);
        assert_eq!(list.get(0), Ok(number.into()));
    };
    contended(1);
    // The thread that has slept for that future is the parent's.
    fork(|| contended(2));
    assert_eq!(list.get(0), Ok(2.into()));
    contended(3);
}

#[test]
fn a_forked_child_waits_for_a_slot_though_nothing_has_a_board() {
    child("list_forker", &()).join();
}

fn mapping_forker(parent: &Peer) {
    parent.recv::<()>();
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            // They are anywhere at the fork: under the lock of the table of mappings.
            scope.spawn(|| {
                while !over.load(Relaxed) {
                    drop(SharedMemory::new(4096).unwrap());
                }
            });
        }
        let begun = Instant::now();
        for _ in 0..300 {
            let forked = catch_unwind(|| fork(|| drop(SharedMemory::new(4096).unwrap())));
            if forked.is_err() || begun.elapsed() > LIMIT / 4 {
                over.store(true, Relaxed);
                forked.unwrap();
                break;
            }
        }
        over.store(true, Relaxed);
    });
}

#[test]
fn a_fork_in_the_middle_of_a_mapping_leaves_no_lock_behind() {
    child("mapping_forker", &()).join();
}
