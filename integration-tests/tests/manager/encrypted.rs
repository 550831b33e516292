//! Managers by TCP with TLS.

use integration_tests::{Row, rows};
use polypool::manager::{
    Address, AuthKey, BindTo, ClientSecurity, ClientTls, ConnectError, DictProxy, Manager, ManagerError, ServerTls,
    set_security,
};
use polypool::{ExecutorExt as _, ProcessPool};

use crate::common::{count_up, methods, pool, soon};

pub(crate) const ROWS: &[Row<fn()>] =
    rows![workers_reach_a_manager_by_tls, other_certificates_are_not_trusted, a_start_with_tls_needs_a_certificate];

/// Certificates for `localhost` with their keys; for nothing but tests.
const ONE: [&[u8]; 2] = [
    include_bytes!("../../../executor/tests/certificates/one.pem"),
    include_bytes!("../../../executor/tests/certificates/one.key"),
];
const TWO: &[u8] = include_bytes!("../../../executor/tests/certificates/two.pem");

const KEY: [u8; 32] = [9; 32];

fn bind() -> BindTo {
    BindTo::Tcp { host: "localhost".to_owned(), port: 0, tls: true }
}

fn trusting(certificate: &[u8]) -> ClientSecurity {
    ClientSecurity::new().key(AuthKey::new(KEY).unwrap()).tls(ClientTls::trusting_pem(certificate).unwrap())
}

fn managers() -> [Manager; 2] {
    let builder = Manager::builder()
        .bind(bind())
        .auth_key(AuthKey::new(KEY).unwrap())
        .tls(ServerTls::from_pem(ONE[0], ONE[1]).unwrap())
        .client_security(trusting(ONE[0]));
    [builder.clone().in_thread().unwrap(), builder.start().unwrap()]
}

#[polypool::task]
fn trust(address: Address) {
    set_security(&address, trusting(ONE[0]));
}

fn workers_reach_a_manager_by_tls() {
    for manager in managers() {
        assert!(manager.address().to_string().starts_with("tls://localhost:"), "{}", manager.address());
        let dict: DictProxy<String, u64> = manager.dict().wait().unwrap();
        let told = trust { address: manager.address().clone() };
        let workers = ProcessPool::builder().workers(2).initializer(told).build().unwrap();
        let tasks = [(); 2].map(|()| workers.submit(count_up { dict: dict.clone(), times: 50 }));
        tasks.into_iter().for_each(|task| soon(task).unwrap().unwrap());
        assert_eq!(dict.get(&"n".to_owned()).wait().unwrap(), Some(100));

        // A message of many records.
        let large = manager.value(&vec![7u8; 1 << 20]).wait().unwrap();
        assert_eq!(large.get().wait().unwrap(), vec![7u8; 1 << 20]);

        let stranger = pool(methods()[0], 1);
        let error = soon(stranger.submit(count_up { dict, times: 1 })).unwrap().unwrap_err();
        assert!(error.contains("set_security"), "{error}");

        // Neither what it shows nor how it is reached is for others to see.
        if let Some(pid) = manager.pid() {
            let key = ONE[1].split(|byte| *byte == b'\n').nth(1).unwrap();
            for file in ["cmdline", "environ"] {
                let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap();
                assert!(!bytes.windows(key.len()).any(|window| window == key), "the key is in its {file}");
            }
        }
    }
}

fn other_certificates_are_not_trusted() {
    for manager in managers() {
        let address = manager.address().clone();
        set_security(&address, trusting(TWO));
        let error = Manager::connect(&address).unwrap_err();
        let ManagerError::Connect { error: why, .. } = &error else { panic!("{error}") };
        assert!(matches!(**why, ConnectError::Tls(_)), "{error}");
        set_security(&address, trusting(ONE[0]));
        Manager::connect(&address).unwrap().ping().wait().unwrap();
    }
}

fn a_start_with_tls_needs_a_certificate() {
    let builder = Manager::builder().bind(bind()).auth_key(AuthKey::new(KEY).unwrap());
    for refused in [builder.clone().in_thread().unwrap_err(), builder.start().unwrap_err()] {
        assert!(refused.to_string().contains("certificate"), "{refused}");
    }
}
