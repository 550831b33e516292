//! The claim protocol under every interleaving and every outcome that the memory orderings allow.
//!
//! The file with the transitions is included here as it is, only that loom's atomics take the place of the processor's.
#![cfg(unix)]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;
use polypool_ipc::ClaimState;

#[path = "../src/claims/protocol.rs"]
mod protocol;

#[test]
fn of_start_and_revoke_exactly_one_wins() {
    loom::model(|| {
        let word = Arc::new(AtomicU64::new(0));
        protocol::send(&word, 1);
        let worker = thread::spawn({
            let word = Arc::clone(&word);
            move || protocol::start(&word, 1)
        });
        let revoked = protocol::revoke(&word, 1);
        let started = worker.join().unwrap();
        assert!(started != revoked, "started: {started}, revoked: {revoked}");
        let expected = if started { ClaimState::Started } else { ClaimState::Revoked };
        assert_eq!(protocol::state(&word, 1), expected);
    });
}

#[test]
fn of_two_revokes_and_a_start_exactly_one_wins() {
    loom::model(|| {
        let word = Arc::new(AtomicU64::new(0));
        protocol::send(&word, 1);
        let others: Vec<_> = [protocol::start as fn(&AtomicU64, u64) -> bool, protocol::revoke]
            .into_iter()
            .map(|step| {
                let word = Arc::clone(&word);
                thread::spawn(move || step(&word, 1))
            })
            .collect();
        let mut winners = usize::from(protocol::revoke(&word, 1));
        for other in others {
            winners += usize::from(other.join().unwrap());
        }
        assert_eq!(winners, 1);
    });
}

#[test]
fn a_stale_start_never_claims_a_slot_used_again() {
    loom::model(|| {
        let word = Arc::new(AtomicU64::new(0));
        protocol::send(&word, 1);
        // The worker still holds the frame of call 1, then gets that of call 2.
        let worker = thread::spawn({
            let word = Arc::clone(&word);
            move || {
                let first = protocol::start(&word, 1);
                if first {
                    assert!(protocol::finish(&word, 1), "nobody else may end it");
                }
                (first, protocol::start(&word, 2))
            }
        });
        let revoked = protocol::revoke(&word, 1);
        if revoked {
            protocol::send(&word, 2); // at once, without waiting for the worker to notice
        }
        let (first, second) = worker.join().unwrap();
        assert!(first != revoked);
        assert!(!(first && second), "call 2 was never sent");
        if revoked {
            let expected = if second { ClaimState::Started } else { ClaimState::Sent };
            assert_eq!(protocol::state(&word, 2), expected);
        }
    });
}

#[test]
fn the_worker_sees_what_the_parent_did_before_send_and_the_parent_what_the_call_did() {
    loom::model(|| {
        let word = Arc::new(AtomicU64::new(0));
        let argument = Arc::new(AtomicU64::new(0));
        let result = Arc::new(AtomicU64::new(0));
        let worker = thread::spawn({
            let (word, argument, result) = (Arc::clone(&word), Arc::clone(&argument), Arc::clone(&result));
            move || {
                if protocol::start(&word, 1) {
                    assert_eq!(argument.load(Ordering::Relaxed), 5);
                    result.store(6, Ordering::Relaxed);
                    assert!(protocol::finish(&word, 1));
                }
            }
        });
        argument.store(5, Ordering::Relaxed);
        protocol::send(&word, 1);
        if protocol::state(&word, 1) == ClaimState::Finished {
            assert_eq!(result.load(Ordering::Relaxed), 6);
        }
        worker.join().unwrap();
    });
}
