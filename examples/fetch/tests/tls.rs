//! What is agreed upon before a request over TLS: who the client is, which version of TLS, and which of HTTP.

mod common;

use std::fs;
use std::io::{self, BufReader, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned, version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use self::common::{Server, read_request, run, serve_http2};

/// Who signs certificates, and the files that the program is given.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Authority { issuer, directory: tempfile::tempdir().unwrap() }
    }

    fn sign(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// Its certificate, for servers and programs that trust it.
    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        Arc::new(roots)
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// `--cacert` with its certificate.
    fn trusted(&self) -> [String; 3] {
        let file = self.file("ca.pem", &self.issuer.pem());
        ["--quiet".into(), "--cacert".into(), file.to_str().unwrap().into()]
    }
}

/// A server at 127.0.0.1 whose certificate the authority has signed. Answers with the version of TLS, and whether the
/// client has shown a certificate.
fn server(
    authority: &Authority,
    config: rustls::ConfigBuilder<ServerConfig, rustls::server::WantsServerCert>,
) -> Server {
    let (certificate, key) = authority.sign("127.0.0.1");
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = Arc::new(config.with_single_cert(vec![certificate.der().clone()], key).unwrap());
    Server::raw(move |_, stream| {
        let connection = ServerConnection::new(config.clone()).map_err(io::Error::other)?;
        let mut stream = BufReader::new(StreamOwned::new(connection, stream));
        let served = serve(&mut stream);
        // Closing with unread bytes would be a reset, which may overtake what was said last.
        let socket = &mut stream.get_mut().sock;
        socket.shutdown(std::net::Shutdown::Write)?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        io::copy(socket, &mut io::sink())?;
        served
    })
}

fn serve(stream: &mut BufReader<StreamOwned<ServerConnection, TcpStream>>) -> io::Result<()> {
    while read_request(stream)?.is_some() {
        let connection = &stream.get_ref().conn;
        let certified = connection.peer_certificates().is_some();
        let body = format!("{:?} {certified}", connection.protocol_version().unwrap());
        write!(stream.get_mut(), "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
    }
    Ok(())
}

#[test]
fn a_client_shows_its_certificate_to_a_server_that_wants_one() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let verifier = WebPkiClientVerifier::builder(authority.roots()).build().unwrap();
    let server = server(&authority, ServerConfig::builder().with_client_cert_verifier(verifier));
    let url = format!("https://{}/", server.address);
    let shown = |authority: &Authority, files: &[(&str, &str)]| {
        let files = files.iter().flat_map(|(flag, content)| {
            let file = authority.file(flag.trim_start_matches('-'), content);
            [(*flag).to_owned(), file.to_str().unwrap().to_owned()]
        });
        files.collect::<Vec<_>>()
    };
    let (certificate, key) = authority.sign("client");
    let (certificate, key) = (certificate.pem(), key.serialize_pem());
    let both = format!("{certificate}{key}");
    for files in [&[("--cert", certificate.as_str()), ("--key", &key)][..], &[("--cert", &both)]] {
        let flags = authority.trusted().into_iter().chain(shown(&authority, files));
        let run = run(flags.chain(["--body", "text", &url].map(str::to_owned)));
        assert_eq!((run.code, run.record(&url)["body"].as_str()), (Some(0), Some("TLSv1_3 true")), "{run:?}");
    }

    let (wrong, key) = stranger.sign("client");
    let both = wrong.pem() + &key.serialize_pem();
    for files in [&[][..], &[("--cert", both.as_str())]] {
        let flags = authority.trusted().into_iter().chain(shown(&stranger, files));
        let run = run(flags.chain(["--retry", "0", &url].map(str::to_owned)));
        assert_eq!((run.code, run.kind(&url).as_str()), (Some(1), "tls"), "{run:?}");
    }
}

#[test]
fn tls_may_have_to_be_the_newest() {
    let authority = Authority::new();
    for (version, body) in [(&version::TLS12, "TLSv1_2 false"), (&version::TLS13, "TLSv1_3 false")] {
        let config = ServerConfig::builder_with_protocol_versions(&[version]).with_no_client_auth();
        let server = server(&authority, config);
        let url = format!("https://{}/", server.address);
        for (flag, succeeds) in [("--tlsv1.2", true), ("--tlsv1.3", body.contains("1_3"))] {
            let flags = [flag, "--retry", "0", "--body", "text", &url].map(str::to_owned);
            let run = run(authority.trusted().into_iter().chain(flags));
            let (kind, body) = if succeeds { ("", Some(body)) } else { ("tls", None) };
            assert_eq!((run.kind(&url).as_str(), run.record(&url)["body"].as_str()), (kind, body), "{flag}: {run:?}");
        }
    }
}

#[test]
fn http2_is_spoken_where_it_is_offered() {
    let authority = Authority::new();
    let (certificate, key) = authority.sign("127.0.0.1");
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = ServerConfig::builder().with_no_client_auth();
    let mut config = config.with_single_cert(vec![certificate.der().clone()], key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let paths: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = paths.clone();
    let server = Server::raw(move |_, stream| {
        stream.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut stream = acceptor.accept(tokio::net::TcpStream::from_std(stream)?).await?;
            if stream.get_ref().1.alpn_protocol() == Some(&b"h2"[..]) {
                return serve_http2(stream, |path| seen.lock().unwrap().push(path.to_owned())).await;
            }
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await?);
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: close\r\n\r\nHTTP/1.1").await?;
            stream.shutdown().await
        })
    });
    let urls: Vec<_> = (0..20).map(|number| format!("https://{}/{number}", server.address)).collect();
    // One after the other: of those that start together, each asks for a connection.
    let flags = ["--body", "text", "--concurrency", "1"].map(str::to_owned);
    let fetched = run(authority.trusted().iter().chain(&flags).chain(&urls));
    for url in &urls {
        assert_eq!(fetched.record(url)["body"], "HTTP/2", "{fetched:?}");
    }
    assert_eq!((paths.lock().unwrap().len(), server.connections()), (20, 1));

    let flags = ["--http1.1", "--body", "text"].map(str::to_owned);
    let old = run(authority.trusted().iter().chain(&flags).chain(&urls[..1]));
    assert_eq!(old.record(&urls[0])["body"], "HTTP/1.1", "{old:?}");
}
