//! What a task can't be, and what to write instead.
//!
//! A refusal names the offending tokens, and all refusals of a function are reported at once. What only the compiler
//! can know, such as whether a type is serialisable, is left to it; the expansion sees to it that it points at the
//! user's code.

use std::collections::HashSet;

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};
use quote::{ToTokens, quote};
use syn::ext::IdentExt as _;
use syn::punctuated::Punctuated;
use syn::visit::{self, Visit};
use syn::visit_mut::{self, VisitMut};
use syn::{FnArg, Generics, Ident, Lifetime, Meta, Pat, PatType, ReturnType, Signature, Token, Type, TypeParamBound};

use crate::input::Function;

/// The refusals of one function.
#[derive(Default)]
pub(crate) struct Refusals {
    errors: Vec<syn::Error>,
    /// Whether the compiler refuses the function as well. It is then left out of what is emitted: one error about one
    /// mistake is enough, and the compiler, which does not know about tasks, would advise to borrow.
    pub(crate) no_function: bool,
}

impl Refusals {
    /// Refuses `tokens`; if there are none, the attribute as a whole.
    pub(crate) fn add(&mut self, tokens: impl ToTokens, message: impl ToString) {
        self.errors.push(syn::Error::new_spanned(tokens, message.to_string()));
    }

    /// Refuses `tokens`, as the compiler will.
    fn add_no_function(&mut self, tokens: impl ToTokens, message: impl ToString) {
        self.no_function = true;
        self.add(tokens, message);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.errors.is_empty()
    }

    /// The refusals as `compile_error!`s, in the order in which they were found.
    pub(crate) fn into_compile_errors(self) -> TokenStream {
        self.errors.iter().map(syn::Error::to_compile_error).collect()
    }
}

/// Checks the signature of a task.
pub(crate) fn task(function: &Function, refusals: &mut Refusals) {
    let signature = &function.signature;
    name(&signature.ident, refusals);
    qualifiers(signature, "a task", refusals);
    generics(&signature.generics, refusals);

    let declared = signature.generics.lifetimes().map(|parameter| parameter.lifetime.clone()).collect();
    let mut types = Types { what: "a task", place: Place::Argument, declared, refusals };
    let mut names = HashSet::new();
    for argument in &signature.inputs {
        match argument {
            FnArg::Receiver(receiver) => types.refusals.add(
                receiver,
                "a task is a free function: move it out of the `impl`, and take what it needs of `self` as arguments",
            ),
            FnArg::Typed(argument) => {
                pattern(&argument.pat, &mut names, types.refusals);
                attributes(argument, types.refusals);
                types.check(&argument.ty);
            }
        }
    }
    if let ReturnType::Type(_, result) = &signature.output {
        types.place = Place::Result;
        types.check(result);
    }
}

/// Checks what crosses the border of a method or function called `what`: its arguments without `self`, and its result
/// if it has one that is to be checked.
pub(crate) fn border<'a>(
    what: &'static str,
    arguments: impl IntoIterator<Item = &'a PatType>,
    result: Option<&Type>,
    refusals: &mut Refusals,
) {
    let mut types = Types { what, place: Place::Argument, declared: HashSet::new(), refusals };
    let mut names = HashSet::new();
    for argument in arguments {
        pattern(&argument.pat, &mut names, types.refusals);
        types.check(&argument.ty);
    }
    if let Some(result) = result {
        types.place = Place::Result;
        types.check(result);
    }
}

/// Qualifiers that neither a task nor `main` can have.
pub(crate) fn qualifiers(signature: &Signature, what: &str, refusals: &mut Refusals) {
    if let Some(token) = &signature.constness {
        refusals.add(token, format!("{what} can't be a `const fn`, it is called at run time: remove `const`"));
    }
    if let Some(token) = &signature.unsafety {
        let message = format!(
            "{what} can't be an `unsafe fn`, nobody is there to promise what it asks for: write a safe `fn` with the \
             `unsafe` block inside"
        );
        refusals.add(token, message);
    }
    if let Some(abi) = &signature.abi {
        let message = format!(
            "{what} can't be `extern`, it is called from Rust: write a plain `fn`, which may call foreign ones"
        );
        refusals.add(abi, message);
    }
    if let Some(dots) = &signature.variadic {
        let message = format!("{what} can't take a variable number of arguments: write one argument, a `Vec<T>`");
        refusals.add_no_function(dots, message);
    }
}

/// A task adds a struct of its name, which must not hide a type that the whole module uses.
fn name(name: &Ident, refusals: &mut Refusals) {
    const PRIMITIVES: [&str; 17] = [
        "bool", "char", "f32", "f64", "i8", "i16", "i32", "i64", "i128", "isize", "str", "u8", "u16", "u32", "u64",
        "u128", "usize",
    ];
    let text = name.unraw().to_string();
    if PRIMITIVES.contains(&text.as_str()) {
        let message = format!(
            "a task adds a struct of its name, and a struct `{text}` would hide the type `{text}`: give the function \
             another name"
        );
        refusals.add(name, message);
    }
}

/// Type parameters and lifetimes of what is no task.
pub(crate) fn no_generics(what: &str, generics: &Generics, refusals: &mut Refusals) {
    let (open, parameters, close) = (&generics.lt_token, &generics.params, &generics.gt_token);
    let message = format!("{what} can't be generic, its name stands for one: write one for each type");
    if !parameters.is_empty() {
        refusals.add(quote!(#open #parameters #close), message);
    } else if let Some(clause) = &generics.where_clause {
        refusals.add(clause, message);
    }
}

fn generics(generics: &Generics, refusals: &mut Refusals) {
    if !generics.params.is_empty() {
        let message = if generics.params.len() > generics.lifetimes().count() {
            "a task can't be generic, its name stands for one function: write a task for each type, and let it call the \
             generic function"
        } else {
            "a task owns its arguments, so it has no lifetimes: remove them, and take owned types such as `String` and \
             `Vec<T>`"
        };
        let (open, parameters, close) = (&generics.lt_token, &generics.params, &generics.gt_token);
        refusals.add(quote!(#open #parameters #close), message);
    }
    if let Some(clause) = &generics.where_clause {
        let message = "a task has nothing to put bounds on, its types are concrete: remove the `where` clause";
        refusals.add(clause, message);
    }
}

/// An argument's name becomes the name of a field, so it must have one.
fn pattern(pattern: &Pat, names: &mut HashSet<String>, refusals: &mut Refusals) {
    match pattern {
        Pat::Ident(name) if name.by_ref.is_none() && name.subpat.is_none() => {
            let text = name.ident.unraw().to_string();
            let message = format!("two arguments are called `{text}`: rename one, they become fields of one struct");
            if !names.insert(text) {
                refusals.add_no_function(&name.ident, message);
            }
        }
        Pat::Ident(name) if name.subpat.is_none() => {
            let name = &name.ident;
            let message = format!(
                "an argument of a task becomes a field: write `{name}`, and borrow it in the body, \
                 `let {name} = &{name};`"
            );
            refusals.add(pattern, message);
        }
        Pat::Wild(_) => {
            let message = "an argument of a task becomes a field, which needs a name: write a name, such as `_unused`";
            refusals.add(pattern, message);
        }
        _ => {
            let message = "an argument of a task becomes a field, which needs a name: write a name, and take it apart in \
                           the body, `let (a, b) = pair;`";
            refusals.add(pattern, message);
        }
    }
}

/// Of the attributes of arguments, documentation and `#[serde(with = "…")]` go to the field, lint levels stay.
fn attributes(argument: &PatType, refusals: &mut Refusals) {
    for attribute in &argument.attrs {
        let meta = &attribute.meta;
        let message = if meta.path().is_ident("cfg") || meta.path().is_ident("cfg_attr") {
            "an argument of a task is there or it isn't: put `#[cfg(…)]` on the whole function, and write one for each \
             case"
        } else if meta.path().is_ident("serde") && !says_only_with(meta) {
            "an argument takes `#[serde(with = \"…\")]`, `serialize_with` and `deserialize_with` only, with others a \
             task would see other arguments in another process: put them into a type of your own"
        } else if !(meta.path().is_ident("serde") || is_documentation(meta) || is_lint_level(meta)) {
            "an argument of a task takes documentation, lint levels and `#[serde(with = \"…\")]` only: remove this \
             attribute, or put it on the function"
        } else {
            continue;
        };
        refusals.add(attribute, message);
    }
}

fn says_only_with(meta: &Meta) -> bool {
    let Meta::List(list) = meta else { return false };
    list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated).is_ok_and(|options| {
        options.iter().all(|option| {
            ["with", "serialize_with", "deserialize_with"].iter().any(|allowed| option.path().is_ident(allowed))
        })
    })
}

/// Whether an attribute is `#[doc …]`, or a `///` comment.
pub(crate) fn is_documentation(meta: &Meta) -> bool {
    meta.path().is_ident("doc")
}

/// Whether an attribute sets the level of lints.
pub(crate) fn is_lint_level(meta: &Meta) -> bool {
    ["allow", "expect", "warn", "deny", "forbid"].iter().any(|level| meta.path().is_ident(level))
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    Argument,
    Result,
}

/// Looks for what can't leave the process in the types of arguments and results.
struct Types<'a> {
    /// What it is that they belong to.
    what: &'static str,
    place: Place,
    /// Lifetimes the function declares; they are refused where they are declared, once.
    declared: HashSet<Lifetime>,
    refusals: &'a mut Refusals,
}

impl Types<'_> {
    fn check(&mut self, ty: &Type) {
        match peel(ty) {
            Type::Slice(slice) => {
                let instead = owned(&slice.elem);
                let message = format!("a slice has no size of its own: write `Vec<{instead}>`");
                self.refusals.add_no_function(ty, message);
            }
            Type::Path(path) if path.path.is_ident("str") => {
                self.refusals.add_no_function(ty, "`str` has no size of its own: write `String`");
            }
            Type::TraitObject(object) if !is_closure(&object.bounds) => {
                let text = text(object.to_token_stream());
                let message = format!(
                    "`{text}` has no size of its own: write an enum of the cases, or `Box<{text}>` if that is \
                     serialisable"
                );
                self.refusals.add_no_function(ty, message);
            }
            Type::Never(_) if self.place == Place::Result => {
                let message = format!(
                    "{} must be able to return: remove `-> !`; one that runs until it is cancelled returns `()`",
                    self.what
                );
                self.refusals.add(ty, message);
            }
            peeled => self.visit_type(peeled),
        }
    }

    fn closure(&mut self, tokens: impl ToTokens) {
        let message = "a function or closure can't travel to another process: take the data it works on, and call it in \
                       the body; or run the closure in a thread with `threads.spawn(|| …)`";
        self.refusals.add(tokens, message);
    }
}

impl<'ast> Visit<'ast> for Types<'_> {
    fn visit_type(&mut self, ty: &'ast Type) {
        match ty {
            Type::Reference(reference) => {
                let instead = format!("write `{}` instead of `{}`", owned(ty), text(ty.to_token_stream()));
                let message = match self.place {
                    Place::Result => format!("a result can't be borrowed, it may come from another process: {instead}"),
                    Place::Argument => {
                        let then = if reference.mutability.is_some() { ", and return what it has become" } else { "" };
                        format!("{} owns its arguments, they may travel to another process: {instead}{then}", self.what)
                    }
                };
                self.refusals.add(ty, message);
            }
            Type::Ptr(_) => {
                let message = "an address means nothing in another process: write the data itself, such as `Vec<u8>`";
                self.refusals.add(ty, message);
            }
            Type::BareFn(_) => self.closure(ty),
            Type::ImplTrait(opaque) if is_closure(&opaque.bounds) => self.closure(ty),
            Type::TraitObject(object) if is_closure(&object.bounds) => self.closure(ty),
            Type::ImplTrait(opaque) if self.place == Place::Result && is_future(&opaque.bounds) => {
                self.refusals.add(ty, "a future is no result: write an `async fn` with the result of the future");
            }
            Type::ImplTrait(_) => {
                let what = match self.place {
                    Place::Argument => "an argument",
                    Place::Result => "a result",
                };
                let message = format!(
                    "{what} needs a type with a name, it is decoded in another process: write the concrete type instead \
                     of `impl …`"
                );
                self.refusals.add(ty, message);
            }
            // `Box<dyn Shape>` may be serialisable; the compiler knows.
            Type::TraitObject(_) => {}
            Type::Infer(_) => {
                let message =
                    format!("{} is called from elsewhere, so its types can't be inferred: write the type", self.what);
                self.refusals.add_no_function(ty, message);
            }
            _ => visit::visit_type(self, ty),
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.segments.first().is_some_and(|first| first.ident == "Self") {
            let message = match self.what {
                "a task" => {
                    "a task is a free function, so there is no `Self`: move it out of the `impl`, and write the type"
                }
                _ => "what crosses a border is named in other places as well, where `Self` is another: write the type",
            };
            self.refusals.add(path, message);
        } else {
            visit::visit_path(self, path);
        }
    }

    fn visit_lifetime(&mut self, lifetime: &'ast Lifetime) {
        if lifetime.ident != "static" && !self.declared.contains(lifetime) {
            let message = format!(
                "{} owns its arguments and its result: write `'static`, as in `Cow<'static, str>`, or an owned type",
                self.what
            );
            self.refusals.add(lifetime, message);
        }
    }
}

/// The type without parentheses and without the invisible groups that `macro_rules!` leaves.
pub(crate) fn peel(ty: &Type) -> &Type {
    match ty {
        Type::Paren(inner) => peel(&inner.elem),
        Type::Group(inner) => peel(&inner.elem),
        other => other,
    }
}

fn is_closure(bounds: &Punctuated<TypeParamBound, Token![+]>) -> bool {
    names_trait(bounds, &["Fn", "FnMut", "FnOnce", "AsyncFn", "AsyncFnMut", "AsyncFnOnce"])
}

fn is_future(bounds: &Punctuated<TypeParamBound, Token![+]>) -> bool {
    names_trait(bounds, &["Future"])
}

fn names_trait(bounds: &Punctuated<TypeParamBound, Token![+]>, traits: &[&str]) -> bool {
    bounds.iter().any(|bound| match bound {
        TypeParamBound::Trait(bound) => {
            bound.path.segments.last().is_some_and(|last| traits.iter().any(|name| last.ident == name))
        }
        _ => false,
    })
}

/// The text of the type with everything owned that is borrowed in it.
fn owned(ty: &Type) -> String {
    struct Own;

    impl VisitMut for Own {
        fn visit_type_mut(&mut self, ty: &mut Type) {
            visit_mut::visit_type_mut(self, ty);
            let Type::Reference(reference) = ty else {
                return;
            };
            let target = peel(&reference.elem).clone();
            *ty = match &target {
                Type::Slice(slice) => {
                    let element = &slice.elem;
                    syn::parse_quote!(Vec<#element>)
                }
                Type::TraitObject(object) => syn::parse_quote!(Box<#object>),
                Type::Path(path) => match path.path.segments.last().map(|last| last.ident.to_string()).as_deref() {
                    Some("str") => syn::parse_quote!(String),
                    Some("Path") => syn::parse_quote!(PathBuf),
                    Some("OsStr") => syn::parse_quote!(OsString),
                    Some("CStr") => syn::parse_quote!(CString),
                    _ => target,
                },
                _ => target,
            };
        }
    }

    let mut ty = ty.clone();
    Own.visit_type_mut(&mut ty);
    text(ty.to_token_stream())
}

/// Tokens as text, with the same spaces however they were written and whatever compiler reads them.
pub(crate) fn text(tokens: TokenStream) -> String {
    let mut text = String::new();
    write_text(tokens, &mut text);
    text
}

fn write_text(tokens: TokenStream, text: &mut String) {
    let mut tokens = tokens.into_iter().peekable();
    let mut path_separator = false;
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::None => ("", ""),
                };
                if open == "(" || open.is_empty() {
                    text.push_str(open);
                } else {
                    push_word(open, text);
                }
                write_text(group.stream(), text);
                text.push_str(close);
            }
            TokenTree::Ident(word) => push_word(&word.to_string(), text),
            TokenTree::Literal(word) => push_word(&word.to_string(), text),
            TokenTree::Punct(punct) => match punct.as_char() {
                ',' if tokens.peek().is_none() => text.push(','),
                ',' => text.push_str(", "),
                ';' => text.push_str("; "),
                '+' => text.push_str(" + "),
                '=' => text.push_str(" = "),
                '-' if punct.spacing() == Spacing::Joint => {
                    tokens.next();
                    text.push_str(" -> ");
                }
                '\'' => push_word("'", text),
                ':' if punct.spacing() == Spacing::Joint => {
                    path_separator = true;
                    text.push(':');
                }
                ':' if path_separator => {
                    path_separator = false;
                    text.push(':');
                }
                ':' => text.push_str(": "),
                other => text.push(other),
            },
        }
    }
}

/// Appends a word, after a space if it would run into what is before.
fn push_word(word: &str, text: &mut String) {
    if text.ends_with(|last: char| last.is_alphanumeric() || matches!(last, '_' | '>' | ')' | ']' | '"')) {
        text.push(' ');
    }
    text.push_str(word);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the compiler hands over as tokens depends on its version in spacing, so the text must not.
    #[test]
    fn text_has_the_spaces_that_rustfmt_would_give_it() {
        for written in [
            "u64",
            "Vec<u8>",
            "HashMap<String, (u8, Option<std::vec::Vec<i64>>)>",
            "(u8,)",
            "[u16; 3]",
            "Box<[u8]>",
            "Cow<'static, str>",
            "Box<dyn Iterator<Item = u8> + Send + 'static>",
            "Box<dyn Fn(&str, u8) -> u8>",
            "<Vec<u8> as IntoIterator>::Item",
            "Array<{ N - 1 }, -1>",
            "r#type::Of<\"text\">",
            "&mut [u8]",
        ] {
            let tokens: TokenStream = written.parse().unwrap();
            let apart: TokenStream = tokens.to_string().parse().unwrap();
            let expected = written.replace("{ N - 1 }", "{N-1}");
            assert_eq!((text(tokens), text(apart)), (expected.clone(), expected));
        }
    }

    #[test]
    fn owned_types_are_those_one_would_write() {
        for (borrowed, expected) in [
            ("&str", "String"),
            ("&'static [u8]", "Vec<u8>"),
            ("&mut Image", "Image"),
            ("&std::path::Path", "PathBuf"),
            ("&[&str]", "Vec<String>"),
            ("&dyn Shape", "Box<dyn Shape>"),
            ("&(dyn Shape + Send)", "Box<dyn Shape + Send>"),
            ("&Option<&(&str, u8)>", "Option<(String, u8)>"),
        ] {
            assert_eq!(owned(&syn::parse_str(borrowed).unwrap()), expected);
        }
    }
}
