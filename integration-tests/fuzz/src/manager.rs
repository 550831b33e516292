//! Requests to a manager's objects, sent over a socket as a client of its own making would.

use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use polypool::manager::{Address, Manager};
use serde::Serialize;

/// After so many inputs the server is another one, so that what they put into its objects goes.
const RUNS: u32 = 200;

/// The server itself as an object, and its methods.
const ROOT: u64 = 0;
const CREATE: u32 = 1;
const ATTACH: u32 = 2;
const PING: u32 = 12;

struct Server {
    manager: Manager,
    /// The objects with the hash of what is in them, as the server compares it.
    objects: Vec<(u64, u64)>,
    runs: u32,
}

static SERVER: Mutex<Option<Server>> = Mutex::new(None);

/// Sends requests: for each an object, a method, the length of the arguments and the arguments.
pub fn serve(mut data: &[u8]) {
    let mut server = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    if server.as_ref().is_none_or(|server| server.runs == RUNS) {
        if let Some(old) = server.take() {
            old.manager.shutdown();
        }
        *server = Some(start());
    }
    let server = server.as_mut().expect("just made");
    server.runs += 1;
    let mut client = Client::connect(server.manager.address());
    for (number, (object, hash)) in server.objects.iter().enumerate() {
        client.request(number as u64 + 1, ROOT, ATTACH, &[object.to_le_bytes(), hash.to_le_bytes()].concat());
    }
    let mut number = 100;
    while let Some((&[object, method, len], rest)) = data.split_first_chunk() {
        let (arguments, rest) = rest.split_at(rest.len().min(usize::from(len)));
        data = rest;
        let object = match server.objects.get(usize::from(object) % (server.objects.len() + 1)) {
            Some((object, _)) => *object,
            None => ROOT,
        };
        number += 1;
        // It would begin to wait for objects that nobody names, a new one with each request.
        if object != ROOT || u32::from(method) != CREATE {
            client.request(if method & 0x80 == 0 { number } else { 0 }, object, u32::from(method & 0x7f), arguments);
        }
    }
    client.request(u64::MAX, ROOT, PING, &[]);
    // Until the last one has been answered, or the server has had enough.
    while client.answer().is_some_and(|(id, _)| id != u64::MAX) {}
}

fn start() -> Server {
    let manager = Manager::in_thread().expect("a manager");
    let proxy = manager.proxy();
    macro_rules! keep {
        ($($made:expr),+ $(,)?) => {
            // Their clients stay as long as the server does.
            $(std::mem::forget($made.wait().expect("an object"));)+
        };
    }
    keep!(
        proxy.dict::<String, u64>(),
        proxy.list::<u64>(),
        proxy.set::<String>(),
        proxy.namespace(),
        proxy.value(&7_u64),
        proxy.queue::<String>(),
        proxy.bounded_queue::<u64>(2),
        proxy.lock(),
        proxy.rlock(),
        proxy.condition(),
        proxy.event(),
        proxy.semaphore(2),
        proxy.bounded_semaphore(2),
        proxy.barrier(2),
    );
    // Who asks for an object as something that it isn't is told what it is.
    let mut client = Client::connect(manager.address());
    let mut objects = Vec::new();
    for object in 0..64_u64 {
        client.request(1, ROOT, ATTACH, &[object.to_le_bytes(), [0; 8]].concat());
        let (_, reply) = client.answer().expect("an answer");
        let failure: Option<serde_json::Value> = rmp_serde::from_slice(&reply).ok();
        if let Some(found) = failure.as_ref().and_then(|failure| failure["Schema"]["found"].as_str()) {
            objects.push((object, hash(found)));
        }
    }
    assert!(objects.len() >= 14, "the objects of the server were not found");
    Server { manager, objects, runs: 0 }
}

/// FNV-1a.
fn hash(schema: &str) -> u64 {
    schema.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

struct Client(UnixStream);

impl Client {
    fn connect(address: &Address) -> Self {
        let stream = match address {
            Address::Unix(path) => UnixStream::connect(path),
            Address::Abstract(name) => {
                SocketAddr::from_abstract_name(name).and_then(|name| UnixStream::connect_addr(&name))
            }
            other => panic!("a manager at {other}"),
        };
        let mut stream = stream.expect("a connection");
        let timeout = Some(Duration::from_secs(5));
        stream.set_read_timeout(timeout).and_then(|()| stream.set_write_timeout(timeout)).expect("timeouts");
        let mut hello = [0; 48];
        hello[..10].copy_from_slice(b"polypool\0\x01");
        stream.write_all(&hello).expect("a hello");
        stream.read_exact(&mut hello).expect("the server's hello");
        assert_eq!(hello[10], 0, "not welcome");
        let mut client = Client(stream);
        #[derive(Serialize)]
        struct Hello {
            protocol: u32,
            pid: u32,
        }
        let hello = Hello { protocol: 1, pid: std::process::id() };
        client.send(&rmp_serde::to_vec_named(&hello).expect("encoded"));
        client.frame().expect("the server's second hello");
        client
    }

    fn send(&mut self, frame: &[u8]) {
        let mut bytes = (frame.len() as u32).to_le_bytes().to_vec();
        bytes.extend_from_slice(frame);
        // It may have hung up.
        let _ = self.0.write_all(&bytes);
    }

    fn request(&mut self, id: u64, object: u64, method: u32, arguments: &[u8]) {
        let mut frame = [id.to_le_bytes(), object.to_le_bytes()].concat();
        frame.extend_from_slice(&method.to_le_bytes());
        frame.extend_from_slice(arguments);
        self.send(&frame);
    }

    fn frame(&mut self) -> Option<Vec<u8>> {
        let mut len = [0; 4];
        match self.0.read_exact(&mut len) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("the server does not answer"),
            Err(_) => return None,
        }
        let mut frame = vec![0; u32::from_le_bytes(len) as usize];
        self.0.read_exact(&mut frame).ok()?;
        Some(frame)
    }

    /// Whose it is, and what follows its status.
    fn answer(&mut self) -> Option<(u64, Vec<u8>)> {
        let frame = self.frame()?;
        let (id, rest) = frame.split_first_chunk().expect("the head of an answer");
        Some((u64::from_le_bytes(*id), rest[1..].to_vec()))
    }
}
