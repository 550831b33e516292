//! Each test states its property in its name. A watchdog ends what hangs; nothing waits for a time to pass unless the
//! passing of that time is the property.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;

use super::endpoint::Accepted;
use super::frame::{FrameDecoder, HEADER_LEN};
use super::link::Timer;
use super::*;
use crate::manager::auth::HELLO_LEN;

type Halves = (FrameReader, FrameWriter, Closer);

/// Runs something that might hang, and fails if it does.
fn within<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> T {
    let (tell, told) = mpsc::channel();
    let thread = thread::spawn(move || {
        let result = what();
        let _ = tell.send(());
        result
    });
    match told.recv_timeout(Duration::from_secs(60)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("it hangs"),
        _ => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
    }
}

/// A timeout that no test lives to see.
const NEVER: Duration = Duration::from_secs(3600);

fn patient() -> Limits {
    Limits { handshake_timeout: NEVER, wrong_key_delay: Duration::ZERO, ..Limits::default() }
}

fn key(byte: u8) -> AuthKey {
    AuthKey::new([byte; 32]).unwrap()
}

fn server_key(byte: u8) -> ServerSecurity {
    ServerSecurity::new().key(key(byte))
}

fn client_key(byte: u8) -> ClientSecurity {
    ClientSecurity::new().key(key(byte))
}

fn tcp() -> BindTo {
    BindTo::Tcp { host: "127.0.0.1".to_owned(), port: 0, tls: false }
}

/// Both ends of a connection, or why there is none.
fn meet(
    endpoint: &Arc<Endpoint>,
    security: &ClientSecurity,
    limits: &Limits,
) -> (Result<Halves, ConnectError>, Result<Halves, ConnectError>) {
    let (endpoint, security, limits) = (Arc::clone(endpoint), security.clone(), limits.clone());
    within(move || {
        let address = endpoint.address();
        let server = thread::spawn(move || endpoint.accept().unwrap().handshake());
        let client = connect(&address, &security, &limits, NEVER);
        (client, server.join().unwrap())
    })
}

fn pair_at(to: &BindTo, server: &ServerSecurity, client: &ClientSecurity, limits: &Limits) -> (Halves, Halves) {
    let endpoint = Arc::new(Endpoint::bind(to, server, limits).unwrap());
    let (client, server) = meet(&endpoint, client, limits);
    (client.unwrap(), server.unwrap())
}

/// A local connection stays a socket, or continues through shared memory.
fn forms() -> [Limits; 2] {
    [Limits { max_rings: 0, ..patient() }, patient()]
}

fn pair(limits: &Limits) -> (Halves, Halves) {
    let (client, server) = pair_at(&BindTo::Private, &ServerSecurity::new(), &ClientSecurity::new(), limits);
    for (reader, writer, _) in [&client, &server] {
        assert_eq!((reader.ring.is_some(), writer.ring.is_some()), (limits.max_rings > 0, limits.max_rings > 0));
    }
    (client, server)
}

/// Sends bytes that need not be frames.
fn write(to: &mut FrameWriter, bytes: &[u8]) -> Result<(), TransportError> {
    to.write_until(bytes, &[], None)
}

/// A connection that says nothing by itself.
fn raw(endpoint: &Endpoint) -> TcpStream {
    let Address::Tcp { host, port, .. } = endpoint.address() else { panic!("not TCP") };
    TcpStream::connect((host, port)).unwrap()
}

fn frames(messages: &[&[u8]]) -> Vec<u8> {
    messages
        .iter()
        .flat_map(|message| {
            (u32::try_from(message.len()).unwrap()).to_le_bytes().into_iter().chain(message.iter().copied())
        })
        .collect()
}

fn feed(decoder: &mut FrameDecoder, mut bytes: &[u8], mut step: impl FnMut() -> usize) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    loop {
        while let Some(payload) = decoder.next().unwrap() {
            out.push(decoder.bytes(payload).to_vec());
        }
        if bytes.is_empty() {
            return out;
        }
        let room = decoder.room();
        let count = step().clamp(1, bytes.len()).min(room.len());
        room[..count].copy_from_slice(&bytes[..count]);
        decoder.filled(count);
        bytes = &bytes[count..];
    }
}

fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The decoder

#[test]
fn frames_split_at_every_border_come_out_the_same() {
    let messages: [&[u8]; 5] = [b"", b"a", b"hello", &[7; 300], b""];
    let bytes = frames(&messages);
    for split in 0..=bytes.len() {
        let mut decoder = FrameDecoder::new(1000);
        let mut got = feed(&mut decoder, &bytes[..split], || usize::MAX);
        assert_eq!(decoder.is_empty(), got.iter().map(|message| HEADER_LEN + message.len()).sum::<usize>() == split);
        got.extend(feed(&mut decoder, &bytes[split..], || usize::MAX));
        assert_eq!(got, messages, "split at {split}");
        assert!(decoder.is_empty());
    }
    let mut decoder = FrameDecoder::new(1000);
    assert_eq!(feed(&mut decoder, &bytes, || 1), messages, "byte by byte");
}

#[test]
fn random_frames_in_random_pieces_come_out_the_same() {
    let mut next = random(11);
    for _ in 0..200 {
        let messages: Vec<Vec<u8>> = (0..next() % 20)
            .map(|_| {
                let len = if next().is_multiple_of(5) { next() % 100_000 } else { next() % 64 };
                (0..len).map(|at| at as u8).collect()
            })
            .collect();
        let bytes = frames(&messages.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let mut decoder = FrameDecoder::new(100_000);
        let largest = 1 << (next() % 18);
        assert_eq!(feed(&mut decoder, &bytes, || (next() % largest) as usize), messages);
    }
}

#[test]
fn random_bytes_never_panic_and_never_take_much_memory() {
    let mut next = random(12);
    for _ in 0..2000 {
        let mut decoder = FrameDecoder::new(1 << 20);
        let mut came = 0;
        'stream: for _ in 0..20 {
            let room = decoder.room();
            let count = (next() as usize % 300).min(room.len());
            room[..count].fill_with(|| if next().is_multiple_of(3) { next() as u8 } else { 0 });
            decoder.filled(count);
            came += count;
            assert!(decoder.capacity() <= 2 * came + (32 << 10));
            loop {
                let has = decoder.has_frame();
                match decoder.next() {
                    Ok(Some(payload)) => assert!(has && decoder.bytes(payload).len() <= 1 << 20),
                    Ok(None) => break assert!(!has),
                    Err(_) => {
                        assert!(has, "an error is an answer that needs no waiting");
                        break 'stream;
                    }
                }
            }
        }
    }
}

#[test]
fn an_announced_length_reserves_no_memory_and_too_long_a_one_is_refused_by_its_header() {
    let mut decoder = FrameDecoder::new(64 << 20);
    let before = decoder.room().len();
    decoder.room()[..HEADER_LEN].copy_from_slice(&(64_u32 << 20).to_le_bytes());
    decoder.filled(HEADER_LEN);
    assert!(decoder.next().unwrap().is_none());
    decoder.room();
    assert_eq!(decoder.capacity(), before, "a promise is not worth 64 MiB");

    for len in [(64_u32 << 20) + 1, u32::MAX] {
        let mut decoder = FrameDecoder::new(64 << 20);
        decoder.room()[..HEADER_LEN].copy_from_slice(&len.to_le_bytes());
        decoder.filled(HEADER_LEN);
        assert!(matches!(decoder.next(), Err(TransportError::TooLong { max: 67_108_864, .. })));
        assert_eq!(decoder.capacity(), before);
    }
}

#[test]
fn memory_of_a_large_message_is_given_back() {
    let mut decoder = FrameDecoder::new(64 << 20);
    let large = vec![1; 8 << 20];
    assert_eq!(feed(&mut decoder, &frames(&[&large]), || usize::MAX), [large]);
    assert!(decoder.capacity() >= 8 << 20);
    decoder.room();
    assert!(decoder.capacity() < 1 << 20);
}

// ---------------------------------------------------------------------------------------------------------------------
// Addresses

#[test]
fn addresses_are_the_same_as_text_and_as_data() {
    for text in
        ["unix:/run/manager", "unix:@name", "unix:./@x", "tcp://host:1", "tls://[::1]:65535", "tcp://10.0.0.1:0"]
    {
        let address: Address = text.parse().unwrap();
        assert_eq!(address.to_string(), text);
        let data = rmp_serde::to_vec(&address).unwrap();
        assert_eq!(rmp_serde::from_slice::<Address>(&data).unwrap(), address);
    }
    assert_eq!(Address::Unix("@x".into()).to_string(), "unix:./@x");
    for text in [
        "",
        "unix:",
        "unix:@",
        "unix:a\0b",
        "tcp:host:1",
        "tcp://host",
        "tcp://host:",
        "tcp://:1",
        "tcp://host:65536",
        "tcp://host:+1",
        "tcp://::1:1",
        "tcp://[host]:1",
        "tcp://[::1:1",
        "tcp://a@b:1",
        "http://host:1",
    ] {
        assert!(text.parse::<Address>().is_err(), "{text:?}");
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Connections

fn exchange(client: Halves, server: Halves) {
    within(move || {
        let ((mut from_server, mut to_server, _a), (mut from_client, mut to_client, _b)) = (client, server);
        to_server.send(b"question").unwrap();
        assert_eq!(from_client.recv(None).unwrap().unwrap(), b"question");
        assert!(!from_client.has_buffered());
        to_client.send(b"").unwrap();
        assert_eq!(from_server.recv(None).unwrap().unwrap(), b"");

        to_server.send_many(&[b"one".as_slice(), b"two", b"three"]).unwrap();
        for (message, more) in [("one", true), ("two", true), ("three", false)] {
            assert_eq!(from_client.recv(None).unwrap().unwrap(), message.as_bytes());
            assert_eq!(from_client.has_buffered(), more);
        }

        // Both directions at once, more than the buffers of the system hold, so that whoever doesn't read while the
        // other writes would hang.
        let large = Arc::new((0..3_000_000_u32).map(|at| (at / 7) as u8).collect::<Vec<u8>>());
        let sent = Arc::clone(&large);
        let writer = thread::spawn(move || {
            (0..4).for_each(|_| to_server.send(&sent).unwrap());
            to_server
        });
        let sent = Arc::clone(&large);
        let other_writer = thread::spawn(move || {
            (0..4).for_each(|_| to_client.send(&sent).unwrap());
            to_client
        });
        let wanted = Arc::clone(&large);
        let reader = thread::spawn(move || {
            (0..4).for_each(|_| assert!(from_client.recv(None).unwrap().unwrap() == wanted.as_slice()));
            from_client
        });
        (0..4).for_each(|_| assert!(from_server.recv(None).unwrap().unwrap() == large.as_slice()));
        let (mut from_client, to_server) = (reader.join().unwrap(), writer.join().unwrap());

        // One direction ends before the other.
        drop(to_server);
        assert!(from_client.recv(None).unwrap().is_none(), "an orderly end");
        assert!(from_client.recv(None).unwrap().is_none(), "and it stays so");
        let mut to_client = other_writer.join().unwrap();
        to_client.send(b"last").unwrap();
        assert_eq!(from_server.recv(None).unwrap().unwrap(), b"last");
        drop((to_client, from_client));
        assert!(from_server.recv(None).unwrap().is_none());
    });
}

#[test]
fn messages_go_both_ways_at_once_over_every_kind_of_socket() {
    let dir = tempfile::tempdir().unwrap();
    for limits in forms() {
        for to in [BindTo::Private, BindTo::PrivateFile, BindTo::Unix(dir.path().join("socket"))] {
            let (client, server) = pair_at(&to, &ServerSecurity::new(), &ClientSecurity::new(), &limits);
            exchange(client, server);
        }
        for to in [BindTo::Private, tcp()] {
            let (client, server) = pair_at(&to, &server_key(1), &client_key(1), &limits);
            exchange(client, server);
        }
    }
}

#[test]
fn who_has_little_time_fetches_little_and_nothing_long() {
    let ((_r, mut to_server, _a), (mut from_client, _w, _b)) = pair(&patient());
    within(move || {
        // All of them are there, in the shared memory, before somebody looks.
        let messages: Vec<[u8; 100]> = (0..200).map(|at| [at; 100]).collect();
        to_server.send_many(&messages).unwrap();
        let mut got = 0;
        for round in 1..=3 {
            let mut most = 5000;
            while from_client.peek(&mut most) == Peek::Message {
                assert_eq!(from_client.recv(Some(Instant::now())).unwrap().unwrap(), messages[got]);
                got += 1;
            }
            assert_eq!((most, got), (0, round * 5000 / 104), "the bytes were counted");
        }
        let mut most = usize::MAX;
        while from_client.peek(&mut most) == Peek::Message {
            assert_eq!(from_client.recv(Some(Instant::now())).unwrap().unwrap(), messages[got]);
            got += 1;
        }
        assert_eq!(got, 200);

        // A long one is recognised by its first bytes, and the rest stays where it is, though it is there.
        write(&mut to_server, &(100_000_u32).to_le_bytes()).unwrap();
        write(&mut to_server, &[7; 50_000]).unwrap();
        let mut most = usize::MAX;
        assert_eq!(from_client.peek(&mut most), Peek::Long);
        let fetched = usize::MAX - most;
        assert!(fetched < 20_000, "{fetched}");
        assert_eq!(from_client.peek(&mut most), Peek::Long, "and remains one");
        assert_eq!(usize::MAX - most, fetched);
        assert!(!from_client.has_buffered(), "it is not whole");
        write(&mut to_server, &[7; 50_000]).unwrap();
        assert!(from_client.has_buffered());
        assert_eq!(from_client.peek(&mut most), Peek::Long, "also when it is there: it would have to be copied");
        assert_eq!(from_client.recv(None).unwrap().unwrap(), [7; 100_000]);
        assert_eq!(from_client.peek(&mut most), Peek::Nothing);
    });

    let limits = Limits { max_message: 1 << 20, ..patient() };
    let ((_r, mut to_server, _a), (mut from_client, _w, _b)) = pair(&limits);
    write(&mut to_server, &u32::MAX.to_le_bytes()).unwrap();
    assert_eq!(from_client.peek(&mut 100), Peek::Message, "what is refused is refused at once");
    assert!(matches!(from_client.recv(None), Err(TransportError::TooLong { .. })));
}

#[test]
fn too_long_a_message_is_not_sent_and_the_connection_goes_on() {
    for limits in forms() {
        let limits = Limits { max_message: 1000, ..limits };
        let ((_, mut to_server, _a), (mut from_client, _to, _b)) = pair(&limits);
        assert!(matches!(to_server.send(&[0; 1001]), Err(TransportError::TooLong { len: 1001, max: 1000 })));
        assert!(matches!(to_server.put(&[0; 1001]), Err(TransportError::TooLong { .. })));
        assert!(matches!(to_server.send_many(&[vec![0; 1], vec![0; 1001]]), Err(TransportError::TooLong { .. })));
        to_server.send(&[5; 1000]).unwrap();
        assert_eq!(from_client.recv(None).unwrap().unwrap(), [5; 1000]);
    }
}

#[test]
fn an_end_in_the_middle_of_a_message_is_not_an_orderly_one() {
    let [socket, ring] = forms();
    for pair in [pair_at(&tcp(), &server_key(1), &client_key(1), &socket), pair(&socket), pair(&ring)] {
        let ((_r, mut to_server, _a), (mut from_client, _w, _b)) = pair;
        write(&mut to_server, &[1, 0, 0, 0, 7, 9, 0, 0, 0, 1, 2]).unwrap();
        drop(to_server);
        within(move || {
            assert_eq!(from_client.recv(None).unwrap().unwrap(), [7], "what was complete comes first");
            assert!(matches!(from_client.recv(None), Err(TransportError::Disconnected(_))));
        });
    }
}

#[test]
fn a_read_that_has_timed_out_goes_on_where_it_was() {
    for limits in forms() {
        let ((_r, mut to_server, _a), (mut from_client, _w, _b)) = pair(&limits);
        within(move || {
            for bytes in [[5, 0].as_slice(), &[0, 0, 1], &[2, 3]] {
                write(&mut to_server, bytes).unwrap();
                let deadline = Instant::now() + Duration::from_millis(20);
                assert!(matches!(from_client.recv(Some(deadline)), Err(TransportError::TimedOut)));
                assert!(Instant::now() >= deadline, "not before its time");
            }
            write(&mut to_server, &[4, 5]).unwrap();
            // Without a deadline again, and with one that has passed when the message is there.
            assert_eq!(from_client.recv(None).unwrap().unwrap(), [1, 2, 3, 4, 5]);
            write(&mut to_server, &[1, 0, 0, 0, 8]).unwrap();
            assert_eq!(from_client.recv(Some(Instant::now())).unwrap().unwrap(), [8]);
        });
    }
}

#[test]
fn a_byte_at_a_time_does_not_outlast_the_deadline_of_a_read() {
    for limits in forms() {
        let ((_r, mut to_server, _a), (mut from_client, _w, _b)) = pair(&limits);
        within(move || {
            thread::scope(|scope| {
                write(&mut to_server, &1_000_000_u32.to_le_bytes()).unwrap();
                // Until nobody listens any more.
                scope.spawn(|| while write(&mut to_server, &[1]).is_ok() {});
                let deadline = Instant::now() + Duration::from_millis(50);
                assert!(matches!(from_client.recv(Some(deadline)), Err(TransportError::TimedOut)));
                drop((from_client, _w));
            });
        });
    }
}

#[test]
fn a_send_to_somebody_who_does_not_read_ends_at_its_timeout() {
    for limits in forms() {
        let limits = Limits { write_timeout: Duration::from_millis(50), ..limits };
        let ((_r, mut to_server, _a), (_, mut to_client, _b)) = pair(&limits);
        within(move || {
            // A server has one from the beginning.
            assert!(matches!(to_client.send(&vec![0; 32 << 20]), Err(TransportError::TimedOut)));
            to_server.set_timeout(Some(Duration::from_millis(50)));
            assert!(matches!(to_server.send(&vec![0; 32 << 20]), Err(TransportError::TimedOut)));
            // Half a message is out, so nothing can follow it: this isn't even tried.
            assert!(matches!(to_server.send(b"x"), Err(TransportError::Disconnected(None))));
        });
    }
}

#[test]
fn closing_wakes_who_reads_and_who_writes() {
    let [socket, ring] = forms();
    for (to, limits) in [(BindTo::Private, ring), (BindTo::Private, socket.clone()), (tcp(), socket)] {
        let ((mut from_server, mut to_server, closer), server) = pair_at(&to, &server_key(1), &client_key(1), &limits);
        within(move || {
            let (begun, begins) = mpsc::channel();
            let begun_too = begun.clone();
            let reader = thread::spawn(move || {
                begun.send(()).unwrap();
                from_server.recv(None).map(|message| message.map(<[u8]>::to_vec))
            });
            let writer = thread::spawn(move || {
                begun_too.send(()).unwrap();
                // Nobody reads at the other end.
                to_server.send(&vec![0; 32 << 20])
            });
            // Whether they have got as far as the system call or not makes no difference to what they must say.
            (0..2).for_each(|_| begins.recv().unwrap());
            assert!(!closer.is_closed());
            closer.close();
            closer.close();
            assert!(matches!(reader.join().unwrap(), Err(TransportError::Closed)));
            assert!(matches!(writer.join().unwrap(), Err(TransportError::Closed)));
            assert!(closer.is_closed());
            drop(server);
        });
    }
}

#[test]
fn a_closer_does_not_keep_a_connection_open() {
    for limits in forms() {
        let ((from_server, to_server, closer), (mut from_client, mut to_client, _b)) = pair(&limits);
        drop((from_server, to_server));
        assert!(closer.is_closed());
        within(move || {
            // Whoever only sends learns it too.
            while to_client.send(b"?").is_ok() {}
            assert!(from_client.recv(None).unwrap().is_none());
        });
    }
}

#[test]
fn timeouts_of_a_socket_are_set_seldom() {
    let mut timer = Timer::default();
    let mut sets = 0;
    for _ in 0..1000 {
        timer
            .arm(Some(Instant::now() + NEVER), |timeout| {
                assert!(timeout.unwrap() < NEVER);
                sets += 1;
                Ok(())
            })
            .unwrap();
    }
    assert_eq!(sets, 1);
    // A shorter one has to be set, a much longer one too, and none at all is set once.
    for (deadline, more) in [(Some(Duration::from_secs(1)), 1), (Some(NEVER), 1), (None, 1), (None, 0)] {
        let before = sets;
        timer
            .arm(deadline.map(|rest| Instant::now() + rest), |_| {
                sets += 1;
                Ok(())
            })
            .unwrap();
        assert_eq!(sets - before, more, "{deadline:?}");
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Listening

#[test]
fn closing_an_endpoint_wakes_who_accepts_ends_handshakes_and_turns_newcomers_away() {
    let endpoint = Arc::new(Endpoint::bind(&tcp(), &server_key(1), &patient()).unwrap());
    within(move || {
        let address = endpoint.address();
        let silent = raw(&endpoint);
        let accepted = endpoint.accept().unwrap();
        let handshake = thread::spawn(move || accepted.handshake().map(|_| ()));
        let (tell, told) = mpsc::channel();
        let acceptors: Vec<_> = (0..2)
            .map(|_| {
                let (endpoint, tell) = (Arc::clone(&endpoint), tell.clone());
                thread::spawn(move || {
                    tell.send(std::fs::read_link("/proc/thread-self").unwrap()).unwrap();
                    endpoint.accept().map(|_| ())
                })
            })
            .collect();
        // Until the kernel says that they wait.
        for thread in told.iter().take(2) {
            let stat = std::path::Path::new("/proc").join(thread).join("stat");
            while !std::fs::read_to_string(&stat).unwrap().rsplit(") ").next().unwrap().starts_with('S') {
                thread::yield_now();
            }
        }
        endpoint.close();
        endpoint.close();
        for acceptor in acceptors {
            assert_eq!(acceptor.join().unwrap().unwrap_err().kind(), io::ErrorKind::NotConnected);
        }
        assert!(handshake.join().unwrap().is_err());
        let error = connect(&address, &client_key(1), &patient(), NEVER).map(|_| ()).unwrap_err();
        assert!(matches!(error, ConnectError::Unreachable { .. }), "{error:?}");
        drop(silent);
    });
}

#[test]
fn sockets_in_the_file_system_are_private_and_go_with_their_owner() {
    let endpoint = Endpoint::bind(&BindTo::PrivateFile, &ServerSecurity::new(), &patient()).unwrap();
    let Address::Unix(path) = endpoint.address() else { panic!("it is a file") };
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    endpoint.close();
    assert!(!path.parent().unwrap().exists());

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let endpoint = Endpoint::bind(&BindTo::Unix(path.clone()), &ServerSecurity::new(), &patient()).unwrap();
    assert_eq!(mode(&path), 0o600);
    drop(endpoint);
    assert!(!path.exists());

    // What somebody else has put there meanwhile is theirs.
    let endpoint = Endpoint::bind(&BindTo::Unix(path.clone()), &ServerSecurity::new(), &patient()).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "theirs").unwrap();
    drop(endpoint);
    assert!(path.exists());
}

#[test]
fn the_socket_of_a_dead_manager_is_reused_and_nothing_else_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let to = BindTo::Unix(path.clone());
    let bind = || Endpoint::bind(&to, &ServerSecurity::new(), &patient());

    // A listener that is dropped without removing its file is what a killed process leaves.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let living = bind().unwrap();
    let error = bind().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains("living"), "{error}");
    assert!(matches!(living.address(), Address::Unix(at) if at == path));
    drop(living);

    std::fs::write(&path, "precious").unwrap();
    let error = bind().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");

    let nowhere = BindTo::Unix(dir.path().join("none").join("socket"));
    let error = Endpoint::bind(&nowhere, &ServerSecurity::new(), &patient()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    let long = BindTo::Unix(dir.path().join("x".repeat(200)));
    assert!(Endpoint::bind(&long, &ServerSecurity::new(), &patient()).is_err());
}

#[test]
fn only_one_of_many_takes_the_place_of_a_dead_manager() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..100 {
        let start = std::sync::Barrier::new(4);
        let path = dir.path().join(round.to_string());
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let bound: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        Endpoint::bind(&BindTo::Unix(path.clone()), &ServerSecurity::new(), &patient())
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(bound.iter().filter(|bound| bound.is_ok()).count(), 1, "{bound:?}");
    }
}

#[test]
fn nobody_home_is_said_at_once() {
    let dir = tempfile::tempdir().unwrap();
    for address in [Address::Unix(dir.path().join("none")), Address::Abstract("polypool-nobody".to_owned())] {
        let error = connect(&address, &ClientSecurity::new(), &patient(), NEVER).map(|_| ()).unwrap_err();
        assert!(matches!(error, ConnectError::Unreachable { .. }), "{error:?}");
    }
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = Address::Tcp { host: "127.0.0.1".to_owned(), port: free, tls: false };
    let error = connect(&address, &client_key(1), &patient(), NEVER).map(|_| ()).unwrap_err();
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error:?}");
}

// ---------------------------------------------------------------------------------------------------------------------
// Who may connect

fn inner(error: &io::Error) -> &ConnectError {
    error.get_ref().and_then(|inner| inner.downcast_ref()).expect("one of ours")
}

#[test]
fn tcp_without_a_key_is_refused_on_both_sides() {
    let error = Endpoint::bind(&tcp(), &ServerSecurity::new(), &patient()).unwrap_err();
    assert!(matches!(inner(&error), ConnectError::KeyMissing));
    assert!(error.to_string().contains("AuthKey"), "{error}");
    let address = "tcp://127.0.0.1:1".parse().unwrap();
    let error = connect(&address, &ClientSecurity::new(), &patient(), NEVER).map(|_| ()).unwrap_err();
    assert!(matches!(error, ConnectError::KeyMissing));
    // And TLS without certificates.
    let to = BindTo::Tcp { host: "127.0.0.1".to_owned(), port: 0, tls: true };
    let error = Endpoint::bind(&to, &server_key(1), &patient()).unwrap_err();
    assert!(matches!(inner(&error), ConnectError::TlsMissing));
    let address = "tls://127.0.0.1:1".parse().unwrap();
    let error = connect(&address, &client_key(1), &patient(), NEVER).map(|_| ()).unwrap_err();
    assert!(matches!(error, ConnectError::TlsMissing));
}

#[test]
fn no_two_handshakes_have_a_nonce_in_common() {
    let mut nonces = std::collections::HashSet::new();
    let mut hello = [0; HELLO_LEN];
    for _ in 0..3 {
        let endpoint = Endpoint::bind(&tcp(), &server_key(1), &patient()).unwrap();
        let mut client = raw(&endpoint);
        let accepted = endpoint.accept().unwrap();
        let server = thread::spawn(move || accepted.handshake().map(drop));
        client.write_all(ClientSide::new(Some(&key(1)), &[0; 32]).hello()).unwrap();
        client.read_exact(&mut hello).unwrap();
        drop(client);
        server.join().unwrap().unwrap_err();
        nonces.insert(hello[HELLO_LEN - 32..].to_vec());

        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("tcp://{}", listener.local_addr().unwrap()).parse().unwrap();
        let client = thread::spawn(move || connect(&address, &client_key(1), &patient(), NEVER).map(drop));
        let (mut server, _) = listener.accept().unwrap();
        server.read_exact(&mut hello).unwrap();
        drop(server);
        client.join().unwrap().unwrap_err();
        nonces.insert(hello[HELLO_LEN - 32..].to_vec());
    }
    assert_eq!(nonces.len(), 6);
}

#[test]
fn a_wrong_key_is_an_error_on_both_sides_and_is_counted() {
    for to in [BindTo::Private, tcp()] {
        let endpoint = Arc::new(Endpoint::bind(&to, &server_key(1), &patient()).unwrap());
        let (client, server) = meet(&endpoint, &client_key(2), &patient());
        assert!(matches!((client, server), (Err(ConnectError::WrongKey), Err(ConnectError::WrongKey))));
        assert_eq!(endpoint.failed_handshakes(), 1);
        let (client, server) = meet(&endpoint, &client_key(1), &patient());
        exchange(client.unwrap(), server.unwrap());
        assert_eq!(endpoint.failed_handshakes(), 1);
    }
    let endpoint = Arc::new(Endpoint::bind(&BindTo::Private, &server_key(1), &patient()).unwrap());
    let (client, server) = meet(&endpoint, &ClientSecurity::new(), &patient());
    assert!(matches!((client, server), (Err(ConnectError::KeyRequired), Err(ConnectError::KeyRequired))));
    let endpoint = Arc::new(Endpoint::bind(&BindTo::Private, &ServerSecurity::new(), &patient()).unwrap());
    let (client, server) = meet(&endpoint, &client_key(1), &patient());
    assert!(matches!((client, server), (Err(ConnectError::ServerHasNoKey), Err(ConnectError::ServerHasNoKey))));
}

#[test]
fn the_answer_to_a_wrong_key_is_held_back() {
    let limits = Limits { wrong_key_delay: Duration::from_millis(60), ..patient() };
    let endpoint = Arc::new(Endpoint::bind(&tcp(), &server_key(1), &limits).unwrap());
    let begun = Instant::now();
    let (client, _) = meet(&endpoint, &client_key(2), &limits);
    assert!(client.is_err());
    assert!(begun.elapsed() >= Duration::from_millis(60));
}

#[test]
fn garbage_is_turned_away_at_once_by_both_sides() {
    // All timeouts are an hour, so only the first wrong byte can be what ends these.
    for garbage in [b"G".as_slice(), b"polypoolx", b"polyglot", b"GET / HTTP/1.1\r\n\r\n", &[0xff; 300], b"pX"] {
        let endpoint = Arc::new(Endpoint::bind(&tcp(), &server_key(1), &patient()).unwrap());
        let mut client = raw(&endpoint);
        let copy = garbage.to_vec();
        let answer = within(move || {
            client.write_all(&copy).unwrap();
            if copy.starts_with(b"polypool") {
                // So far it may be right; what comes isn't.
                client.write_all(&[0; HELLO_LEN]).unwrap();
            }
            let outcome = endpoint.accept().unwrap().handshake().map(|_| ()).unwrap_err();
            assert!(matches!(outcome, ConnectError::NotUnderstood | ConnectError::OtherVersion { .. }), "{outcome:?}");
            let mut answer = [0; HELLO_LEN];
            client.read_exact(&mut answer).map(|()| answer)
        });
        let answer = answer.unwrap();
        assert!(auth::may_be_hello(&answer), "the answer is one of ours: {answer:?}");

        // A server that says so.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let address = Address::Tcp { host: "127.0.0.1".to_owned(), port, tls: false };
        let copy = garbage.to_vec();
        within(move || {
            let server = thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                stream.write_all(&copy).unwrap();
                if copy.starts_with(b"polypool") {
                    stream.write_all(&[0; HELLO_LEN]).unwrap();
                }
                stream
            });
            let error = connect(&address, &client_key(1), &patient(), NEVER).map(|_| ()).unwrap_err();
            assert!(matches!(error, ConnectError::NotUnderstood | ConnectError::OtherVersion { .. }), "{error:?}");
            drop(server.join().unwrap());
        });
    }
}

#[test]
fn whoever_goes_away_during_the_handshake_is_let_go() {
    for said in [b"".as_slice(), b"poly"] {
        let endpoint = Arc::new(Endpoint::bind(&tcp(), &server_key(1), &patient()).unwrap());
        within(move || {
            let mut client = raw(&endpoint);
            client.write_all(said).unwrap();
            drop(client);
            let outcome = endpoint.accept().unwrap().handshake().map(|_| ()).unwrap_err();
            assert!(matches!(outcome, ConnectError::Disconnected), "{outcome:?}");
        });
    }
}

#[test]
fn a_byte_at_a_time_does_not_outlast_the_timeout_on_either_side() {
    let limits = Limits { handshake_timeout: Duration::from_millis(150), ..patient() };
    let endpoint = Arc::new(Endpoint::bind(&tcp(), &server_key(1), &limits).unwrap());
    within(move || {
        let mut client = raw(&endpoint);
        let slow = thread::spawn(move || {
            // A client that would need over a second for its hello.
            for byte in ClientSide::new(None, &[0; 32]).hello() {
                if client.write_all(&[*byte]).is_err() {
                    break;
                }
                thread::sleep(Duration::from_millis(30));
            }
        });
        let outcome = endpoint.accept().unwrap().handshake().map(|_| ()).unwrap_err();
        assert!(matches!(outcome, ConnectError::TimedOut), "{outcome:?}");
        slow.join().unwrap();

        // A server that accepts nobody: the client isn't left hanging either.
        let address = endpoint.address();
        let error = connect(&address, &client_key(1), &limits, NEVER).map(|_| ()).unwrap_err();
        assert!(matches!(error, ConnectError::TimedOut), "{error:?}");
        let error = connect(&address, &client_key(1), &patient(), Duration::from_millis(50)).map(|_| ()).unwrap_err();
        assert!(matches!(error, ConnectError::TimedOut), "{error:?}");
    });
}

#[test]
fn a_full_server_says_so_and_has_room_again_when_somebody_goes() {
    let limits = Limits { max_connections: 1, ..patient() };
    let few = Limits { max_handshakes: 1, ..patient() };
    for (limits, through, to) in
        [(limits, true, BindTo::Private), (few.clone(), false, BindTo::Private), (few, false, tcp())]
    {
        let endpoint = Arc::new(Endpoint::bind(&to, &server_key(1), &limits).unwrap());
        within(move || {
            let address = endpoint.address();
            let acceptor = Arc::clone(&endpoint);
            let (tell, accepted) = mpsc::channel();
            let accepting = thread::spawn(move || {
                while let Ok(one) = acceptor.accept() {
                    tell.send(one).unwrap();
                }
            });
            let join = |accepted: &mpsc::Receiver<Accepted>| {
                let (address, limits) = (address.clone(), limits.clone());
                let client = thread::spawn(move || connect(&address, &client_key(1), &limits, NEVER));
                let server = accepted.recv().unwrap().handshake().unwrap();
                (client.join().unwrap().unwrap(), server)
            };
            let first = if through {
                (Some(join(&accepted)), None)
            } else {
                let silent = Stream::connect(&address, Instant::now() + NEVER).unwrap();
                (None, Some((silent, accepted.recv().unwrap())))
            };
            let error = connect(&address, &client_key(1), &limits, NEVER).map(|_| ()).unwrap_err();
            assert!(matches!(error, ConnectError::Busy), "{error:?}");
            drop(first);
            join(&accepted);
            endpoint.close();
            accepting.join().unwrap();
        });
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Through shared memory

/// A client by hand: what a server answers to a hello with these extras.
fn by_hand(endpoint: &Arc<Endpoint>, extras: u8) -> (UnixStream, auth::Hello, Serving) {
    use std::os::linux::net::SocketAddrExt as _;
    let Address::Abstract(name) = endpoint.address() else { panic!("not local") };
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap();
    let mut stream = UnixStream::connect_addr(&address).unwrap();
    let accepted = endpoint.accept().unwrap();
    let server = thread::spawn(move || accepted.handshake());
    stream.write_all(ClientSide::new(None, &[0; 32]).extras(extras).hello()).unwrap();
    let mut hello = [0; HELLO_LEN];
    stream.read_exact(&mut hello).unwrap();
    (stream, hello, server)
}

type Serving = thread::JoinHandle<Result<Halves, ConnectError>>;

/// What the server sends then: a byte, and descriptors.
fn luggage(stream: &UnixStream) -> (u8, Vec<std::os::fd::OwnedFd>) {
    let mut byte = [0];
    let (count, fds) = polypool_ipc::recv_with_fds(stream, &mut byte, 16).unwrap();
    assert_eq!(count, 1);
    (byte[0], fds)
}

fn private(limits: &Limits) -> Arc<Endpoint> {
    Arc::new(Endpoint::bind(&BindTo::Private, &ServerSecurity::new(), limits).unwrap())
}

#[test]
fn shared_memory_is_for_both_who_can_and_for_so_many_connections() {
    let limits = Limits { max_rings: 2, ..patient() };
    let endpoint = private(&limits);
    let meet = |limits: &Limits| {
        let (client, server) = meet(&endpoint, &ClientSecurity::new(), limits);
        let (client, server) = (client.unwrap(), server.unwrap());
        let rings = (client.0.ring.is_some(), server.0.ring.is_some());
        assert_eq!(rings.0, rings.1);
        (rings.0, client, server)
    };
    let no = Limits { max_rings: 0, ..patient() };
    let first = meet(&limits);
    let plain = meet(&no);
    let second = meet(&limits);
    let third = meet(&limits);
    assert_eq!([first.0, plain.0, second.0, third.0], [true, false, true, false]);
    drop(first);
    let fourth = meet(&limits);
    assert!(fourth.0, "there is a place again");
    for (_, client, server) in [plain, second, third, fourth] {
        exchange(client, server);
    }
    // A handshake that fails keeps no place.
    for _ in 0..3 {
        let (stream, _, server) = by_hand(&endpoint, auth::RING);
        drop(stream);
        assert!(within(move || server.join().unwrap()).is_err());
    }
    assert!(meet(&limits).0);

    // A server that has none to give says so before.
    let endpoint = private(&no);
    let (_stream, hello, server) = by_hand(&endpoint, auth::RING);
    assert_eq!(auth::extras(&hello), 0);
    assert!(within(move || server.join().unwrap()).unwrap().0.ring.is_none());
    let (client, server) = self::meet(&endpoint, &ClientSecurity::new(), &limits);
    exchange(client.unwrap(), server.unwrap());
}

#[test]
fn a_peer_that_does_not_know_of_shared_memory_is_not_bothered_with_it() {
    let endpoint = private(&patient());
    let (mut stream, hello, server) = by_hand(&endpoint, 0);
    assert_eq!(auth::extras(&hello), 0);
    within(move || {
        let (mut reader, mut writer, _closer) = server.join().unwrap().unwrap();
        stream.write_all(&frames(&[b"as ever"])).unwrap();
        assert_eq!(reader.recv(None).unwrap().unwrap(), b"as ever");
        writer.send(b"yes").unwrap();
        let mut answer = [0; 7];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, *b"\x03\0\0\0yes");
    });
}

#[test]
fn a_peer_that_cannot_take_the_memory_goes_on_with_the_socket() {
    let endpoint = private(&patient());
    within(move || {
        let (mut stream, hello, server) = by_hand(&endpoint, auth::RING | 0x80);
        assert_eq!(auth::extras(&hello), auth::RING, "what it doesn't know it doesn't promise");
        let (code, fds) = luggage(&stream);
        assert_eq!((code, fds.len()), (1, 2));
        stream.write_all(&[4]).unwrap();
        let (mut reader, _writer, _closer) = server.join().unwrap().unwrap();
        stream.write_all(&frames(&[b"as ever"])).unwrap();
        assert_eq!(reader.recv(None).unwrap().unwrap(), b"as ever");
        assert!(reader.ring.is_none());
    });
}

#[test]
fn whoever_does_not_say_whether_it_takes_the_memory_is_let_go() {
    let endpoint = private(&patient());
    let brief = private(&Limits { handshake_timeout: Duration::from_millis(50), ..patient() });
    within(move || {
        let (mut stream, _, server) = by_hand(&endpoint, auth::RING);
        stream.write_all(b"?").unwrap();
        assert!(matches!(server.join().unwrap(), Err(ConnectError::NotUnderstood)));
        let (stream, _, server) = by_hand(&endpoint, auth::RING);
        drop(stream);
        assert!(matches!(server.join().unwrap(), Err(ConnectError::Disconnected)));
        let (_stream, _, server) = by_hand(&brief, auth::RING);
        assert!(matches!(server.join().unwrap(), Err(ConnectError::TimedOut)));
        assert_eq!(brief.failed_handshakes(), 1);
    });
}

/// What a client makes of a server that sends this after its hello.
fn offered(offer: impl FnOnce(&mut UnixStream) + Send + 'static) -> Result<Halves, ConnectError> {
    use std::os::linux::net::SocketAddrExt as _;
    let name = format!("polypool-test-{:032x}", u128::from_ne_bytes(auth::random().unwrap()));
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let listener = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
    within(move || {
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut hello = [0; HELLO_LEN];
            stream.read_exact(&mut hello).unwrap();
            match auth::server_on_hello(None, &[1; 32], &[0; 32], &hello, auth::RING) {
                auth::ServerStep::Done(hello) => stream.write_all(&hello).unwrap(),
                other => panic!("{other:?}"),
            }
            offer(&mut stream);
            // What the client answers, or its end.
            let _ = stream.read(&mut [0]);
        });
        let limits = Limits { handshake_timeout: Duration::from_millis(300), ..patient() };
        let outcome = connect(&Address::Abstract(name), &ClientSecurity::new(), &limits, NEVER);
        if let Ok((_, _, closer)) = &outcome {
            closer.close();
        }
        server.join().unwrap();
        outcome
    })
}

#[test]
fn a_client_takes_no_memory_that_is_none() {
    use std::os::fd::AsFd as _;
    let send = |byte: u8, fds: usize| {
        move |stream: &mut UnixStream| {
            let null = std::fs::File::open("/dev/null").unwrap();
            polypool_ipc::send_with_fds(stream, &[byte], &vec![null.as_fd(); fds]).unwrap();
        }
    };
    // It declines, and goes on with the socket.
    for fds in [0, 1, 2, 3, 100] {
        assert!(offered(send(1, fds)).unwrap().0.ring.is_none(), "{fds}");
    }
    assert!(offered(send(2, 0)).unwrap().0.ring.is_none());
    assert!(matches!(offered(send(7, 2)), Err(ConnectError::NotUnderstood)));
    assert!(matches!(
        offered(|stream| stream.shutdown(std::net::Shutdown::Both).unwrap()),
        Err(ConnectError::Disconnected)
    ));
    assert!(matches!(offered(|_| {}), Err(ConnectError::TimedOut)));
}

#[test]
fn a_peer_that_lies_in_the_memory_gets_an_error_and_hangs_nobody() {
    use std::os::unix::fs::FileExt as _;
    let mut next = random(13);
    let mut corrupt = 0;
    for round in 0..150 {
        let limits = Limits { max_message: 1 << 16, ..patient() };
        let endpoint = private(&limits);
        let (mut stream, _, server) = by_hand(&endpoint, auth::RING);
        let (code, mut fds) = luggage(&stream);
        assert_eq!(code, 1);
        let memory = std::fs::File::from(fds.remove(0));
        let len = memory.metadata().unwrap().len();
        stream.write_all(&[3]).unwrap();
        let server = thread::spawn(move || {
            let (mut reader, mut writer, _closer) = server.join().unwrap().unwrap();
            writer.set_timeout(Some(Duration::from_secs(20)));
            loop {
                let answer = match reader.recv(None) {
                    Ok(Some(frame)) => frame.to_vec(),
                    Ok(None) => return None,
                    Err(error) => return Some(error),
                };
                if let Err(error) = writer.send(&answer) {
                    return Some(error);
                }
            }
        });
        for _ in 0..1 + next() % 20 {
            let mut bytes = vec![0; 1 + (next() % 64) as usize];
            bytes.fill_with(|| next() as u8 & next() as u8);
            // Mostly the words, which stand at the beginning.
            let within = if next().is_multiple_of(4) { len } else { 2048 };
            memory.write_at(&bytes, next() % (within - 64)).unwrap();
            let _ = stream.write_all(&[1]);
        }
        drop((stream, fds));
        let outcome = within(move || server.join().unwrap());
        match &outcome {
            Some(TransportError::Corrupt(_)) => corrupt += 1,
            None | Some(TransportError::TooLong { .. } | TransportError::Disconnected(_)) => {}
            Some(other) => panic!("round {round}: {other:?}"),
        }
    }
    assert!(corrupt > 10, "only {corrupt} times were the positions impossible");
}

#[test]
fn a_peer_that_is_killed_is_the_end_in_the_middle_of_a_message_or_not() {
    for (half, name) in [(true, "half"), (false, "whole")] {
        let endpoint = private(&patient());
        let address = endpoint.address().to_string();
        let (mut reader, mut child) = within(move || {
            let mut command = std::process::Command::new(std::env::current_exe().unwrap());
            command.args(["manager::transport::tests::connect_and_be_killed", "--exact", "--ignored", "--nocapture"]);
            command.env("POLYPOOL_TEST_ADDRESS", address).env("POLYPOOL_TEST_HALF", name);
            let child =
                command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).spawn().unwrap();
            let (reader, _writer, _closer) = endpoint.accept().unwrap().handshake().unwrap();
            assert!(reader.ring.is_some());
            (reader, child)
        });
        within(move || {
            assert_eq!(reader.recv(None).unwrap().unwrap(), b"here");
            let waits = thread::spawn(move || reader.recv(None).map(|frame| frame.map(<[u8]>::to_vec)));
            child.kill().unwrap();
            child.wait().unwrap();
            match waits.join().unwrap() {
                Err(TransportError::Disconnected(_)) if half => {}
                Ok(None) if !half => {}
                other => panic!("{name}: {other:?}"),
            }
        });
    }
}

#[test]
#[ignore = "run by a_peer_that_is_killed_is_the_end_in_the_middle_of_a_message_or_not, as another process"]
fn connect_and_be_killed() {
    // Absent when somebody runs all ignored tests.
    let Ok(address) = std::env::var("POLYPOOL_TEST_ADDRESS") else { return };
    let Ok(half) = std::env::var("POLYPOOL_TEST_HALF") else { return };
    let (_reader, mut writer, _closer) =
        connect(&address.parse().unwrap(), &ClientSecurity::new(), &patient(), NEVER).unwrap();
    let mut bytes = frames(&[b"here"]);
    if half == "half" {
        bytes.extend_from_slice(&[9, 0, 0, 0, 1, 2]);
    }
    write(&mut writer, &bytes).unwrap();
    // Until the kill, or the end of whoever should have done it.
    let _ = std::io::stdin().read(&mut [0]);
}

#[test]
fn a_connection_without_traffic_sleeps() {
    let ((mut from_server, _w, _a), _server) = pair(&patient());
    within(move || {
        let sleeps = |reader: &FrameReader| reader.ring.as_ref().unwrap().sleeps();
        let before = sleeps(&from_server);
        let deadline = Instant::now() + Duration::from_millis(200);
        assert!(matches!(from_server.recv(Some(deadline)), Err(TransportError::TimedOut)));
        let slept = sleeps(&from_server).wrapping_sub(before);
        assert!((1..=2).contains(&slept), "it has gone to sleep {slept} times in one wait");
    });
}

#[test]
fn connections_leave_no_descriptor_and_no_thread() {
    let output = within(|| alone("count_what_connections_leave"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "it ran");
}

#[test]
#[ignore = "run by connections_leave_no_descriptor_and_no_thread, alone in a process"]
fn count_what_connections_leave() {
    // Absent when somebody runs all ignored tests.
    if std::env::var_os("POLYPOOL_TEST_ALONE").is_none() {
        return;
    }
    let count = |what: &str| std::fs::read_dir(format!("/proc/self/{what}")).unwrap().count();
    let maps = || std::fs::read_to_string("/proc/self/maps").unwrap().matches("memfd").count();
    let endpoint = private(&patient());
    let mut before = None;
    for round in 0..201 {
        let (client, server) = meet(&endpoint, &ClientSecurity::new(), &patient());
        let ((_, mut writer, _a), (mut reader, _, _b)) = (client.unwrap(), server.unwrap());
        assert!(reader.ring.is_some());
        writer.send(b"hello").unwrap();
        assert_eq!(reader.recv(None).unwrap().unwrap(), b"hello");
        drop((writer, reader, _a, _b));
        if round == 0 {
            // After the first one, for what is opened only once.
            before = Some((count("fd"), count("task"), maps()));
        }
    }
    assert_eq!(Some((count("fd"), count("task"), maps())), before);
}

/// Runs one test of this binary in a process of its own, where nobody else opens descriptors.
fn alone(test: &str) -> std::process::Output {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args([&format!("manager::transport::tests::{test}"), "--exact", "--ignored", "--nocapture"]);
    command.env("POLYPOOL_TEST_ALONE", "1").output().unwrap()
}

#[test]
fn failed_handshakes_leave_no_descriptor() {
    let output = within(|| alone("count_descriptors_of_failed_handshakes"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "it ran");
}

#[test]
#[ignore = "run by failed_handshakes_leave_no_descriptor, alone in a process"]
fn count_descriptors_of_failed_handshakes() {
    // Absent when somebody runs all ignored tests.
    if std::env::var_os("POLYPOOL_TEST_ALONE").is_none() {
        return;
    }
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let endpoint = Arc::new(Endpoint::bind(&tcp(), &server_key(1), &patient()).unwrap());
    // Once for what is opened only once.
    let _ = meet(&endpoint, &client_key(2), &patient());
    let before = open();
    for round in 0..200 {
        match round % 4 {
            0 => assert!(meet(&endpoint, &client_key(2), &patient()).0.is_err()),
            1 => {
                raw(&endpoint).write_all(b"garbage").unwrap();
                assert!(endpoint.accept().unwrap().handshake().is_err());
            }
            2 => {
                drop(raw(&endpoint));
                assert!(endpoint.accept().unwrap().handshake().is_err());
            }
            _ => {
                let _client = raw(&endpoint);
                drop(endpoint.accept().unwrap());
            }
        }
    }
    assert_eq!(open(), before);
    drop(endpoint);
}

#[test]
fn another_user_is_turned_away_by_the_kernels_word() {
    use std::os::unix::process::CommandExt as _;
    if !rustix::process::geteuid().is_root() {
        return eprintln!("only root can be somebody else; not tested");
    }
    let endpoint = Arc::new(Endpoint::bind(&BindTo::Private, &ServerSecurity::new(), &patient()).unwrap());
    let address = endpoint.address().to_string();
    // A copy where everybody may execute it.
    let dir = tempfile::Builder::new().permissions(std::fs::Permissions::from_mode(0o755)).tempdir().unwrap();
    let program = dir.path().join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let output = within(move || {
        let server = thread::spawn(move || endpoint.accept().unwrap().handshake().map(|_| ()));
        let output = std::process::Command::new(program)
            .args(["manager::transport::tests::connect_as_another_user", "--exact", "--ignored", "--nocapture"])
            .env("POLYPOOL_TEST_ADDRESS", address)
            .current_dir("/")
            .uid(65_534)
            .output()
            .unwrap();
        let outcome = server.join().unwrap();
        assert!(matches!(outcome, Err(ConnectError::ForeignUser)), "{outcome:?}");
        output
    });
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "it ran");
}

#[test]
#[ignore = "run by another_user_is_turned_away_by_the_kernels_word, as another user"]
fn connect_as_another_user() {
    use std::os::linux::net::SocketAddrExt as _;
    // Absent when somebody runs all ignored tests.
    let Ok(address) = std::env::var("POLYPOOL_TEST_ADDRESS") else { return };
    let address: Address = address.parse().unwrap();
    let Address::Abstract(name) = &address else { panic!("{address}") };
    let mut stream =
        UnixStream::connect_addr(&std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap()).unwrap();
    let side = ClientSide::new(None, &[0; 32]);
    // The server doesn't wait for this before it says no, and may be gone.
    let _ = stream.write_all(side.hello());
    let mut hello = [0; HELLO_LEN];
    stream.read_exact(&mut hello).unwrap();
    assert!(matches!(side.on_hello(&hello, &[0; 32]), Err(ConnectError::ForeignUser)));
}

#[cfg(feature = "tls")]
mod with_tls {
    use super::*;
    use crate::manager::tls::{ClientTls, ServerTls};

    fn tls() -> BindTo {
        BindTo::Tcp { host: "localhost".to_owned(), port: 0, tls: true }
    }

    /// Two certificates for `localhost` with their keys; for the next hundred years, and for nothing but tests.
    const ONE: [&[u8]; 2] =
        [include_bytes!("../../../tests/certificates/one.pem"), include_bytes!("../../../tests/certificates/one.key")];
    const TWO: [&[u8]; 2] =
        [include_bytes!("../../../tests/certificates/two.pem"), include_bytes!("../../../tests/certificates/two.key")];

    /// A server that shows a certificate for `localhost`, and a client that trusts it.
    fn trusting() -> (ServerSecurity, ClientSecurity) {
        with(ONE)
    }

    fn with([certificate, key]: [&[u8]; 2]) -> (ServerSecurity, ClientSecurity) {
        let server = ServerTls::from_pem(certificate, key).unwrap();
        let client = ClientTls::trusting_pem(certificate).unwrap();
        (server_key(1).tls(server), client_key(1).tls(client))
    }

    #[test]
    fn messages_go_both_ways_at_once_inside_tls() {
        let (server, client) = trusting();
        let (client, server) = pair_at(&tls(), &server, &client, &patient());
        assert!(client.0.link.tls.get().is_some() && server.0.link.tls.get().is_some());
        exchange(client, server);
    }

    #[test]
    fn a_certificate_that_is_not_trusted_is_refused() {
        let ((server, _), (_, client)) = (with(ONE), with(TWO));
        let endpoint = Arc::new(Endpoint::bind(&tls(), &server, &patient()).unwrap());
        let (client, server) = meet(&endpoint, &client, &patient());
        let (Err(ConnectError::Tls(client)), Err(server)) = (client, server) else { panic!("it was accepted") };
        assert!(client.to_string().contains("certificate"), "{client}");
        assert!(matches!(server, ConnectError::Tls(_)), "the server is told: {server:?}");
    }

    #[test]
    fn a_certificate_for_another_host_is_refused() {
        let (server, client) = trusting();
        let to = BindTo::Tcp { host: "127.0.0.1".to_owned(), port: 0, tls: true };
        let endpoint = Arc::new(Endpoint::bind(&to, &server, &patient()).unwrap());
        let (client, _) = meet(&endpoint, &client, &patient());
        assert!(matches!(client, Err(ConnectError::Tls(_))));
    }

    #[test]
    fn the_key_is_asked_for_inside_tls_too() {
        let (server, client) = trusting();
        let endpoint = Arc::new(Endpoint::bind(&tls(), &server, &patient()).unwrap());
        let (client, server) = meet(&endpoint, &client.key(key(2)), &patient());
        assert!(matches!((client, server), (Err(ConnectError::WrongKey), Err(ConnectError::WrongKey))));
    }

    #[test]
    fn a_plain_client_of_a_tls_server_and_the_other_way_round_are_told_at_once() {
        let (server, client) = trusting();
        let endpoint = Arc::new(Endpoint::bind(&tls(), &server, &patient()).unwrap());
        let Address::Tcp { host, port, .. } = endpoint.address() else { panic!("it is TCP") };
        let accepting = thread::spawn(move || endpoint.accept().unwrap().handshake().map(|_| ()));
        within(move || {
            let plain = Address::Tcp { host, port, tls: false };
            let error = connect(&plain, &client_key(1), &patient(), NEVER).map(|_| ()).unwrap_err();
            assert!(matches!(error, ConnectError::PeerSpeaksTls), "{error:?}");
            let error = accepting.join().unwrap().unwrap_err();
            assert!(matches!(error, ConnectError::PeerSpeaksNoTls), "{error:?}");
        });

        let endpoint = Arc::new(Endpoint::bind(&tcp(), &server_key(1), &patient()).unwrap());
        let Address::Tcp { host, port, .. } = endpoint.address() else { panic!("it is TCP") };
        let accepting = thread::spawn(move || endpoint.accept().unwrap().handshake().map(|_| ()));
        within(move || {
            let error = connect(&Address::Tcp { host, port, tls: true }, &client, &patient(), NEVER);
            let error = error.map(|_| ()).unwrap_err();
            assert!(matches!(error, ConnectError::PeerSpeaksNoTls), "{error:?}");
            let error = accepting.join().unwrap().unwrap_err();
            assert!(matches!(error, ConnectError::PeerSpeaksTls), "{error:?}");
        });
    }

    #[test]
    fn an_end_that_tls_has_not_announced_is_not_an_orderly_one() {
        let (server, client) = trusting();
        let ((_r, to_server, closer), (mut from_client, _w, _b)) = pair_at(&tls(), &server, &client, &patient());
        // As somebody on the way does who cuts the connection.
        closer.close();
        drop(to_server);
        within(move || assert!(matches!(from_client.recv(None), Err(TransportError::Disconnected(_)))));
    }

    #[test]
    fn an_altered_record_is_refused() {
        let (server, client) = trusting();
        let ((_r, to_server, _a), (mut from_client, _w, _b)) = pair_at(&tls(), &server, &client, &patient());
        let mut forged = vec![0x17, 3, 3, 0, 64];
        forged.resize(5 + 64, 0xaa);
        to_server.link.write(&forged, &[], &mut Timer::default(), None).unwrap();
        within(move || assert!(matches!(from_client.recv(None), Err(TransportError::Tls(_)))));
    }

    #[test]
    fn random_bytes_in_the_tls_handshake_end_it() {
        let (server, _) = trusting();
        let endpoint = Arc::new(Endpoint::bind(&tls(), &server, &patient()).unwrap());
        within(move || {
            let mut next = random(13);
            for _ in 0..50 {
                let mut bytes = vec![0x16, 3, 1, 0, next() as u8];
                bytes.extend((0..next() % 2000).map(|_| next() as u8));
                let mut client = raw(&endpoint);
                client.write_all(&bytes).unwrap();
                client.shutdown(std::net::Shutdown::Write).unwrap();
                assert!(endpoint.accept().unwrap().handshake().is_err());
            }
        });
    }

    #[test]
    fn certificates_and_keys_that_are_none_are_refused_with_the_reason() {
        use crate::manager::TlsConfigError::*;
        let ([certificate, key], [_, other]) = (ONE, TWO);
        assert!(matches!(ServerTls::from_pem(b"", key), Err(NoCertificate)));
        assert!(matches!(ServerTls::from_pem(certificate, b"x"), Err(NoKey(_))));
        assert!(matches!(ServerTls::from_pem(certificate, other), Err(Unusable(_))));
        assert!(matches!(ClientTls::trusting_pem(b"nothing"), Err(NoCertificate)));
        assert!(matches!(ClientTls::trusting_pem_file("/none"), Err(File { .. })));
    }
}
