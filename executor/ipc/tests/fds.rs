//! Descriptors over a socket.
#![cfg(unix)]

use std::fs::File;
use std::io::{self, ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;

use polypool_ipc::{recv_with_fds, send_with_fds};

/// Sends `count` copies of a pipe's write end, the only ones that stay.
fn send_copies(socket: &UnixStream, bytes: &[u8], count: usize) -> PipeReader {
    let (reader, writer) = io::pipe().unwrap();
    let copies: Vec<PipeWriter> = (0..count).map(|_| writer.try_clone().unwrap()).collect();
    let borrowed: Vec<BorrowedFd<'_>> = copies.iter().map(|copy| copy.as_fd()).collect();
    send_with_fds(socket, bytes, &borrowed).unwrap();
    reader
}

fn is_cloexec(fd: &OwnedFd) -> bool {
    rustix::io::fcntl_getfd(fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC)
}

#[test]
fn descriptors_arrive_in_order_usable_and_close_on_exec() {
    let (here, there) = UnixStream::pair().unwrap();
    let (mut first, first_end) = io::pipe().unwrap();
    let (mut second, second_end) = io::pipe().unwrap();
    send_with_fds(&here, b"two", &[first_end.as_fd(), second_end.as_fd()]).unwrap();
    drop((first_end, second_end));

    let mut buf = [0; 16];
    let (bytes, fds) = recv_with_fds(&there, &mut buf, 2).unwrap();
    assert_eq!(&buf[..bytes], b"two");
    assert!(fds.iter().all(is_cloexec));
    let [one, two]: [OwnedFd; 2] = fds.try_into().unwrap();
    File::from(one).write_all(b"1").unwrap();
    File::from(two).write_all(b"2").unwrap();
    let (mut a, mut b) = (String::new(), String::new());
    first.read_to_string(&mut a).unwrap();
    second.read_to_string(&mut b).unwrap();
    assert_eq!((&*a, &*b), ("1", "2"));
}

#[test]
fn bytes_travel_without_descriptors_too() {
    let (here, there) = UnixStream::pair().unwrap();
    send_with_fds(&here, b"plain", &[]).unwrap();
    let mut buf = [0; 16];
    let (bytes, fds) = recv_with_fds(&there, &mut buf, 0).unwrap();
    assert_eq!((&buf[..bytes], fds.len()), (&b"plain"[..], 0));
}

#[test]
fn the_end_of_the_stream_is_zero_bytes() {
    let (here, there) = UnixStream::pair().unwrap();
    drop(here);
    let (bytes, fds) = recv_with_fds(&there, &mut [0; 4], 1).unwrap();
    assert_eq!((bytes, fds.len()), (0, 0));
}

#[test]
fn a_message_larger_than_the_socket_buffer_arrives_whole_with_its_descriptor_first() {
    let (here, there) = UnixStream::pair().unwrap();
    let sent: Vec<u8> = (0..4_000_000_u32).map(|n| (n % 251) as u8).collect();
    let expected = sent.clone();
    let sender = thread::spawn(move || drop(send_copies(&here, &sent, 1)));
    let mut received = Vec::new();
    let mut buf = vec![0; 70_000];
    let (bytes, fds) = recv_with_fds(&there, &mut buf, 1).unwrap();
    assert_eq!(fds.len(), 1);
    received.extend_from_slice(&buf[..bytes]);
    loop {
        let (bytes, fds) = recv_with_fds(&there, &mut buf, 1).unwrap();
        assert!(fds.is_empty());
        if bytes == 0 {
            break;
        }
        received.extend_from_slice(&buf[..bytes]);
    }
    sender.join().unwrap();
    assert!(received == expected);
}

/// One too many may still fit into the rounded space, more don't; either way nothing may stay open.
#[test]
fn more_descriptors_than_expected_are_an_error_and_all_closed() {
    for (expected, sent) in [(0, 1), (1, 2), (1, 3), (2, 3), (3, 4), (2, 200)] {
        let (here, there) = UnixStream::pair().unwrap();
        let mut reader = send_copies(&here, b"x", sent);
        let error = recv_with_fds(&there, &mut [0; 4], expected).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{expected} {sent}");
        // Ends only if every copy is closed.
        assert_eq!(reader.read_to_end(&mut Vec::new()).unwrap(), 0);
        // And the stream goes on.
        send_with_fds(&here, b"y", &[]).unwrap();
        assert_eq!(recv_with_fds(&there, &mut [0; 4], 0).unwrap().0, 1);
    }
}

#[test]
fn fewer_than_expected_are_fine_and_the_most_is_253() {
    let (here, there) = UnixStream::pair().unwrap();
    let reader = send_copies(&here, b"x", 253);
    let (_, fds) = recv_with_fds(&there, &mut [0; 4], 253).unwrap();
    assert_eq!(fds.len(), 253);
    let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).chain([reader.as_fd()]).collect();
    assert_eq!(send_with_fds(&here, b"x", &fds).unwrap_err().kind(), ErrorKind::InvalidInput);
    send_with_fds(&here, b"x", &fds[..1]).unwrap();
    assert_eq!(recv_with_fds(&there, &mut [0; 4], 253).unwrap().1.len(), 1);
    assert_eq!(recv_with_fds(&there, &mut [0; 4], 254).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn empty_messages_and_buffers_are_refused() {
    let (here, there) = UnixStream::pair().unwrap();
    assert_eq!(send_with_fds(&here, b"", &[here.as_fd()]).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(recv_with_fds(&there, &mut [], 1).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn a_peer_that_has_hung_up_is_an_error() {
    let (here, there) = UnixStream::pair().unwrap();
    drop(there);
    assert_eq!(send_with_fds(&here, b"x", &[here.as_fd()]).unwrap_err().kind(), ErrorKind::BrokenPipe);
    assert_eq!(send_with_fds(&here, b"x", &[]).unwrap_err().kind(), ErrorKind::BrokenPipe);
}
