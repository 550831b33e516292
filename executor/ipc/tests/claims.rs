//! The claim table on one side: its transitions, and what a peer may throw at it.
#![cfg(unix)]

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

use polypool_ipc::{ClaimState, Claims};

fn pair(slots: usize) -> (Claims, Claims, File) {
    let (parent, fd) = Claims::create(slots).unwrap();
    let worker = Claims::open(&fd, slots).unwrap();
    (parent, worker, File::from(fd))
}

#[test]
fn a_call_that_was_started_finishes_and_cannot_be_revoked() {
    let (parent, worker, _fd) = pair(2);
    assert_eq!(parent.state(1, 7), ClaimState::Unknown);
    assert!(parent.send(1, 7));
    assert_eq!(worker.state(1, 7), ClaimState::Sent);
    assert!(worker.start(1, 7));
    assert_eq!(parent.state(1, 7), ClaimState::Started);
    assert!(!parent.revoke(1, 7));
    assert!(!worker.start(1, 7), "a call starts once");
    assert!(worker.finish(1, 7));
    assert_eq!(parent.state(1, 7), ClaimState::Finished);
    assert!(!worker.finish(1, 7));
    assert!(!parent.revoke(1, 7));
}

#[test]
fn a_call_that_was_revoked_never_starts() {
    let (parent, worker, _fd) = pair(1);
    assert!(parent.send(0, 1));
    assert!(parent.revoke(0, 1));
    assert!(!parent.revoke(0, 1), "only one caller takes it back");
    assert!(!worker.start(0, 1));
    assert!(!worker.finish(0, 1));
    assert_eq!(worker.state(0, 1), ClaimState::Revoked);
}

#[test]
fn a_stale_frame_claims_nothing_in_a_slot_used_again() {
    let (parent, worker, _fd) = pair(1);
    assert!(parent.send(0, 1));
    assert!(parent.revoke(0, 1));
    assert!(parent.send(0, 2));
    assert!(!worker.start(0, 1));
    assert_eq!(parent.state(0, 1), ClaimState::Unknown);
    assert_eq!(parent.state(0, 2), ClaimState::Sent);
    assert!(worker.start(0, 2));
    assert!(!worker.finish(0, 1));
    assert!(!parent.revoke(0, 1));
    assert_eq!(parent.state(0, 2), ClaimState::Started);
}

#[test]
fn slots_do_not_touch_each_other() {
    let (parent, worker, _fd) = pair(1000);
    for slot in 0..1000 {
        assert!(parent.send(slot, slot as u64 + 1));
    }
    for slot in (0..1000).step_by(2) {
        assert!(worker.start(slot, slot as u64 + 1));
    }
    for slot in 0..1000 {
        assert_eq!(parent.revoke(slot, slot as u64 + 1), slot % 2 == 1);
    }
}

#[test]
fn slots_that_do_not_exist_are_refused_without_panic() {
    let (parent, worker, _fd) = pair(3);
    assert_eq!(parent.slots(), 3);
    // 511 lies in the same page as slot 2.
    for slot in [3, 511, 512, usize::MAX / 8, usize::MAX] {
        assert!(!parent.send(slot, 1));
        assert!(!worker.start(slot, 1));
        assert!(!parent.revoke(slot, 1));
        assert!(!worker.finish(slot, 1));
        assert_eq!(parent.state(slot, 1), ClaimState::Unknown);
    }
}

#[test]
fn hostile_words_and_sequences_cause_no_panic() {
    let (parent, worker, file) = pair(1);
    let mut words: Vec<u64> = (0..64).map(|bit| 1 << bit).chain(0..16).collect();
    words.extend([u64::MAX, u64::MAX - 1, u64::MAX - 2, u64::MAX - 3]);
    for &word in &words {
        for sequence in words.iter().copied().chain([word >> 2]) {
            // Behind the back of both sides, through the descriptor.
            file.write_all_at(&word.to_ne_bytes(), 0).unwrap();
            let same = sequence << 2 == word & !3 && word != 0;
            let expected = match word & 3 {
                _ if !same => ClaimState::Unknown,
                0 => ClaimState::Finished,
                1 => ClaimState::Sent,
                2 => ClaimState::Started,
                _ => ClaimState::Revoked,
            };
            assert_eq!(parent.state(0, sequence), expected, "{word:#x} {sequence:#x}");
            assert_eq!(worker.start(0, sequence), expected == ClaimState::Sent);
            assert!(!parent.revoke(0, sequence), "{word:#x} {sequence:#x}");
            let _ = worker.finish(0, sequence);
            assert!(parent.send(0, sequence));
        }
    }
}

#[test]
fn tables_of_impossible_size_are_refused() {
    for slots in [0, usize::MAX / 8 + 1, usize::MAX / 8, usize::MAX] {
        assert_eq!(Claims::create(slots).unwrap_err().kind(), ErrorKind::InvalidInput, "{slots}");
    }
}

#[test]
fn a_table_smaller_than_agreed_is_refused() {
    let (_, fd) = Claims::create(8).unwrap();
    Claims::open(&fd, 8).unwrap();
    Claims::open(&fd, 7).unwrap();
    // Nine would still fit into the page that is mapped; the size of the memory decides. (macOS rounds that up.)
    let slots = if cfg!(target_os = "macos") { 1 << 20 } else { 9 };
    let error = Claims::open(&fd, slots).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData);
    assert!(error.to_string().contains("bytes"), "{error}");
}

#[test]
fn the_mapping_outlives_the_descriptor() {
    let (parent, worker, file) = pair(1);
    drop(file);
    assert!(parent.send(0, 1));
    drop(parent);
    assert!(worker.start(0, 1));
}

/// What the seals of Linux give.
#[cfg(target_os = "linux")]
mod sealed {
    use super::*;
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

    fn refusal(result: io::Result<Claims>) -> ErrorKind {
        result.unwrap_err().kind()
    }

    #[test]
    fn the_memory_cannot_be_resized_by_anyone() {
        let (parent, worker, file) = pair(600); // more than a page
        for size in [0, 1, 4096, 1 << 20] {
            assert_eq!(file.set_len(size).unwrap_err().kind(), ErrorKind::PermissionDenied, "{size}");
        }
        assert_eq!(file.metadata().unwrap().len(), 4800);
        // All of it is still there: no SIGBUS.
        assert!(parent.send(599, 1) && worker.start(599, 1));
    }

    #[test]
    fn memory_that_could_shrink_is_refused() {
        let open = |seals| {
            let fd = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
            ftruncate(&fd, 4096).unwrap();
            fcntl_add_seals(&fd, seals).unwrap();
            Claims::open(fd, 8)
        };
        assert_eq!(refusal(open(SealFlags::empty())), ErrorKind::InvalidData);
        assert_eq!(refusal(open(SealFlags::GROW | SealFlags::SEAL)), ErrorKind::InvalidData);
        assert!(open(SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).is_ok());
    }

    #[test]
    fn memory_that_cannot_be_written_is_an_error() {
        let fd = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&fd, 4096).unwrap();
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL).unwrap();
        assert_eq!(refusal(Claims::open(fd, 8)), ErrorKind::PermissionDenied);
    }

    #[test]
    fn descriptors_of_other_kinds_are_refused() {
        let file = File::open(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(refusal(Claims::open(file, 8)), ErrorKind::InvalidData);
        let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(refusal(Claims::open(socket, 8)), ErrorKind::InvalidData);
    }
}

#[test]
fn errors_are_io_errors_a_caller_can_pass_on() -> io::Result<()> {
    let (claims, _fd) = Claims::create(1)?;
    assert_eq!(format!("{claims:?}"), "Claims { slots: 1, .. }");
    Ok(())
}
