//! `#[main]`: `init()` first, then the user's `main`, on a runtime if it is asynchronous.
//!
//! The user's function becomes an inner one, whole. So its inner attributes and items stay where they are allowed, and
//! its errors read as if the macro were not there.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Path, Signature};

use crate::input::{Function, Setting, default_crate};
use crate::refuse::{self, Refusals};

/// Expands `#[main(options)] item`.
pub(crate) fn expand(options: TokenStream, item: TokenStream) -> TokenStream {
    let otherwise = "put `#[polypool::main]` on the function the program starts with: `fn main` or `async fn main`";
    let function = match Function::read(item.clone(), otherwise) {
        Ok(function) => function,
        Err(error) => {
            let error = error.to_compile_error();
            return quote!(#item #error);
        }
    };
    let mut refusals = Refusals::default();
    check(&function, &mut refusals);
    let options = Options::read(options, function.signature.asyncness.is_some(), &mut refusals);
    if refusals.is_empty() {
        return program(&function, &options);
    }
    let errors = refusals.into_compile_errors();
    if function.signature.ident == "main" {
        // A program without a `main` would be one more error.
        quote!(fn main() {} #errors)
    } else {
        quote!(#[allow(dead_code)] #function #errors)
    }
}

fn check(function: &Function, refusals: &mut Refusals) {
    let signature = &function.signature;
    if signature.ident != "main" {
        let message = format!(
            "`#[polypool::main]` goes on the function the program starts with: call it `main`, or remove the attribute \
             from `{}`",
            signature.ident
        );
        refusals.add(&signature.ident, message);
    }
    refuse::qualifiers(signature, "`main`", refusals);
    if !signature.generics.params.is_empty() {
        refusals.add(&signature.generics, "nobody can choose the parameters of `main`: remove them");
    }
    if let Some(clause) = &signature.generics.where_clause {
        refusals.add(clause, "`main` has nothing to put bounds on: remove the `where` clause");
    }
    if !signature.inputs.is_empty() {
        refusals.add(
            &signature.inputs,
            "`main` takes no arguments: remove them, and read the command line with `std::env::args()`",
        );
    }
    for attribute in &function.attributes {
        let segments = &attribute.path().segments;
        if segments.len() > 1 && segments.last().is_some_and(|last| last.ident == "main") {
            refusals.add(
                attribute,
                "`#[polypool::main]` starts the tokio runtime itself, once it knows that this process is no worker: \
                 remove this attribute",
            );
        }
    }
}

/// What stands in the parentheses of the macro.
struct Options {
    flavor: Flavor,
    worker_threads: Option<usize>,
    polypool: Path,
}

#[derive(Clone, Copy, PartialEq)]
enum Flavor {
    MultiThread,
    CurrentThread,
}

impl Options {
    fn read(options: TokenStream, is_async: bool, refusals: &mut Refusals) -> Self {
        const KNOWN: &str = "`flavor = \"…\"`, `worker_threads = n` or `crate = path`";
        let mut read = Options { flavor: Flavor::MultiThread, worker_threads: None, polypool: default_crate() };
        let settings = Setting::read_all(options, KNOWN, refusals);
        for setting in &settings {
            if setting.key == "flavor" {
                match setting.string().map(|flavor| flavor.value()).as_deref() {
                    Some("multi_thread") => read.flavor = Flavor::MultiThread,
                    Some("current_thread") => read.flavor = Flavor::CurrentThread,
                    _ => setting.refuse(
                        refusals,
                        "write `flavor = \"multi_thread\"`, the default, or `flavor = \"current_thread\"`",
                    ),
                }
            } else if setting.key == "worker_threads" {
                match setting.number() {
                    Some(0) => setting.refuse(
                        refusals,
                        "a runtime needs at least one thread: write 1 or more, or `flavor = \"current_thread\"` to run \
                         on the thread of `main`",
                    ),
                    Some(threads) => read.worker_threads = Some(threads),
                    None => {
                        setting.refuse(refusals, "`worker_threads` takes a whole number, such as `worker_threads = 4`");
                    }
                }
            } else if setting.key == "crate" {
                if let Some(path) = setting.path(refusals) {
                    read.polypool = path;
                }
            } else {
                setting
                    .refuse_key(refusals, format!("`#[polypool::main]` has no option `{}`, only {KNOWN}", setting.key));
                continue;
            }
            if !is_async && setting.key != "crate" {
                setting.refuse_key(
                    refusals,
                    format!(
                        "`{}` is about the runtime, which a plain `fn main` does not have: write `async fn main`, or \
                         remove it",
                        setting.key
                    ),
                );
            }
        }
        if read.flavor == Flavor::CurrentThread && read.worker_threads.is_some() {
            for setting in settings.iter().filter(|setting| setting.key == "worker_threads") {
                setting.refuse_key(
                    refusals,
                    "`current_thread` runs on the thread of `main` alone: remove `worker_threads`, or write \
                     `flavor = \"multi_thread\"`",
                );
            }
        }
        read
    }
}

/// The program: `init()`, then what the user wrote.
fn program(function: &Function, options: &Options) -> TokenStream {
    let Function { attributes, visibility, signature, body } = function;
    let Options { flavor, worker_threads, polypool } = options;
    let outer = Signature { asyncness: None, ..signature.clone() };
    let run = if signature.asyncness.is_some() {
        let private = quote!(#polypool::__private);
        let flavor = match flavor {
            Flavor::MultiThread => quote!(MultiThread),
            Flavor::CurrentThread => quote!(CurrentThread),
        };
        let worker_threads = match worker_threads {
            Some(threads) => quote!(::core::option::Option::Some(#threads)),
            None => quote!(::core::option::Option::None),
        };
        quote!(#private::run_main(#private::Flavor::#flavor, #worker_threads, main()))
    } else {
        quote!(main())
    };
    quote! {
        #(#attributes)*
        #visibility #outer {
            #[allow(clippy::unused_async)]
            #signature #body
            #polypool::init();
            #run
        }
    }
}
