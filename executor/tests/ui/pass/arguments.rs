//! Arguments of every allowed kind become fields.
#![forbid(unsafe_code)]
#![deny(warnings)]

use std::borrow::Cow;
use std::collections::HashMap;

use polypool::{Run, Task};

#[polypool::task]
fn ping() {}

#[polypool::task]
fn counted(mut n: u32) -> u32 {
    n += 1;
    n
}

#[polypool::task]
fn r#match(r#type: String, r#in: u8) -> String {
    r#type.repeat(r#in.into())
}

#[polypool::task]
fn nested(
    /// Documentation goes to the field.
    lookup: HashMap<String, (u8, Vec<Option<i64>>)>,
    text: Cow<'static, str>,
    #[allow(non_snake_case)] Capital: [u16; 3],
    _unused: (),
) -> (usize, usize, u16) {
    (lookup.len(), text.len(), Capital[0])
}

fn ready<T: Task>(task: T) -> T::Output {
    assert!(!T::IS_ASYNC);
    match task.run() {
        Run::Ready(output) => output,
        _ => panic!("{} is not asynchronous", T::NAME),
    }
}

fn main() {
    ping();
    ready(ping {});
    assert_eq!(format!("{:?}", ping {}), "ping");
    assert_eq!(ping::SIGNATURE, "fn()");
    assert_eq!(serde_json::to_string(&ping {}).unwrap(), "{}");

    assert_eq!(counted(1), 2);
    assert_eq!(ready(counted { n: 1 }), 2);
    assert_eq!(counted::SIGNATURE, "fn(n: u32) -> u32");
    assert_eq!(format!("{:?}", counted { n: 1 }), "counted { .. }");
    assert_eq!(format!("{:?}", polypool::__private::TASKS.len()), "4");

    assert_eq!(r#match("a".to_owned(), 2), "aa");
    assert_eq!(ready(r#match { r#type: "a".to_owned(), r#in: 2 }), "aa");
    assert_eq!(r#match::SIGNATURE, "fn(type: String, in: u8) -> String");
    assert!(r#match::NAME.ends_with("::match"), "{}", r#match::NAME);
    let json = serde_json::to_string(&r#match { r#type: "a".to_owned(), r#in: 2 }).unwrap();
    assert_eq!(json, r#"{"type":"a","in":2}"#);
    assert_eq!(ready(serde_json::from_str::<r#match>(&json).unwrap()), "aa");

    let call = nested { lookup: HashMap::new(), text: "text".into(), Capital: [7; 3], _unused: () };
    assert_eq!(ready(call), (0, 4, 7));
    assert_eq!(
        nested::SIGNATURE,
        "fn(lookup: HashMap<String, (u8, Vec<Option<i64>>)>, text: Cow<'static, str>, Capital: [u16; 3], _unused: ()) \
         -> (usize, usize, u16)"
    );
}
