//! Descriptors as parts of messages.
#![cfg(unix)]

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;

use polypool_ipc::{Fd, Luggage, pack, recv_with_fds, send_with_fds, unpack};
use serde::{Deserialize, Serialize};

fn pair() -> (UnixStream, Fd) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (ours, Fd::new(theirs.into()))
}

#[derive(Serialize, Deserialize)]
struct Letter {
    text: String,
    first: Fd,
    more: Vec<Option<Fd>>,
}

#[test]
fn a_descriptor_in_a_field_arrives_as_one_for_the_same_socket() {
    let (mut ours, theirs) = pair();
    let letter = Letter { text: "hello".into(), first: theirs, more: Vec::new() };
    let (bytes, luggage) = pack(|| serde_json::to_vec(&letter).unwrap());
    let (here, there) = UnixStream::pair().unwrap();
    send_with_fds(&here, &bytes, &luggage.fds().collect::<Vec<_>>()).unwrap();
    drop((letter, luggage));

    let mut buffer = [0; 256];
    let (count, fds) = recv_with_fds(&there, &mut buffer, 4).unwrap();
    let letter: Letter = unpack(&Luggage::new(fds), || serde_json::from_slice(&buffer[..count])).unwrap();
    assert_eq!(letter.text, "hello");
    UnixStream::from(letter.first.into_inner().unwrap()).write_all(b"!").unwrap();
    let mut heard = String::new();
    ours.read_to_string(&mut heard).unwrap(); // Ends, as the last copy has been dropped.
    assert_eq!(heard, "!");
}

#[test]
fn the_same_descriptor_twice_travels_once_and_others_keep_their_places() {
    let (_a, first) = pair();
    let (_b, second) = pair();
    let letter = Letter { text: String::new(), first: first.clone(), more: vec![Some(second), None, Some(first)] };
    let (bytes, luggage) = pack(|| serde_json::to_vec(&letter).unwrap());
    assert_eq!(luggage.len(), 2);
    let back: Letter = unpack(&luggage, || serde_json::from_slice(&bytes)).unwrap();
    let number = |fd: &Option<Fd>| fd.as_ref().map(|fd| fd.as_fd().as_raw_fd());
    assert_eq!(number(&back.more[2]), Some(back.first.as_fd().as_raw_fd()));
    assert_ne!(number(&back.more[0]), number(&back.more[2]));
    assert_eq!(number(&back.more[1]), None);
}

#[test]
fn encoding_without_packing_is_an_error_that_says_what_to_do() {
    let (_ours, theirs) = pair();
    let error = serde_json::to_vec(&theirs).unwrap_err().to_string();
    assert!(error.contains("argument or result of a task"), "{error}");
}

#[test]
fn decoding_without_luggage_or_beyond_it_is_an_error() {
    let error = serde_json::from_str::<Fd>("0").unwrap_err().to_string();
    assert!(error.contains("carries no descriptors"), "{error}");
    let (_ours, theirs) = pair();
    let luggage = Luggage::new(vec![theirs.into_inner().unwrap()]);
    let error = unpack(&luggage, || serde_json::from_str::<Fd>("1")).unwrap_err().to_string();
    assert!(error.contains("descriptor 1 of its message, which has 1"), "{error}");
    for lie in ["-1", "4294967296", "\"0\"", "null", "[0, 1]"] {
        assert!(unpack(&luggage, || serde_json::from_str::<Fd>(lie)).is_err(), "{lie}");
    }
}

#[test]
fn a_message_packed_inside_of_another_keeps_its_luggage_to_itself() {
    let (_a, outer) = pair();
    let (_b, inner) = pair();
    let ((inner_luggage, _), outer_luggage) = pack(|| {
        let before = serde_json::to_vec(&outer).unwrap();
        let (_, luggage) = pack(|| serde_json::to_vec(&inner).unwrap());
        assert_eq!(serde_json::to_vec(&outer).unwrap(), before, "the outer message went on where it was");
        (luggage, ())
    });
    assert_eq!((inner_luggage.len(), outer_luggage.len()), (1, 1));
}

#[test]
fn a_panic_in_an_encoder_leaves_no_packing_behind() {
    let (_ours, theirs) = pair();
    let panicked = std::panic::catch_unwind(|| pack(|| panic!("encoder")));
    assert!(panicked.is_err());
    assert!(serde_json::to_vec(&theirs).is_err());
}
