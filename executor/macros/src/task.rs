//! `#[task]`: the function as written, and beside it the call as a value.
//!
//! The struct has the function's name, but braces, so it lives among the types and the function among the values. All
//! else that is emitted sits in one `const _`, where it can't collide with anything.
//!
//! Every emitted token carries the hygiene of the macro, also where it takes its place in the source from the user's
//! code: errors then point at the user's code, and lints know that the user did not write it.

use proc_macro2::{Group, Span, TokenStream, TokenTree};
use quote::{ToTokens, quote, quote_spanned};
use syn::ext::IdentExt as _;
use syn::spanned::Spanned as _;
use syn::{
    Attribute, Expr, ExprLit, FnArg, GenericArgument, Ident, Lit, Meta, Pat, Path, PathArguments, ReturnType, Type,
    Visibility,
};

use crate::input::{Function, Setting, default_crate};
use crate::refuse::{self, Refusals, peel, text};

/// Expands `#[task(options)] item`.
pub(crate) fn expand(options: TokenStream, item: TokenStream) -> TokenStream {
    let otherwise = "a task is a function: put `#[task]` on a `fn` or an `async fn`";
    let mut function = match Function::read(item.clone(), otherwise) {
        Ok(function) => function,
        Err(error) => {
            let error = error.to_compile_error();
            return quote!(#item #error);
        }
    };
    let mut refusals = Refusals::default();
    let options = Options::read(options, &mut refusals);
    refuse::task(&function, &mut refusals);

    let arguments = Argument::take_all(&mut function);
    if refusals.is_empty() {
        let value = value(&function, &arguments, &options);
        // What these advise, a task can't do: borrow, be generic, be `const`.
        quote! {
            #[allow(clippy::needless_pass_by_value, clippy::implicit_hasher, clippy::missing_const_for_fn)]
            #function
            #value
        }
    } else {
        // The function stays if it can, so that its callers are not reported as well.
        let function = (!refusals.no_function).then(|| quote!(#[allow(dead_code)] #function));
        let errors = refusals.into_compile_errors();
        quote!(#function #errors)
    }
}

/// What stands in the parentheses of the macro.
struct Options {
    name: Option<String>,
    polypool: Path,
}

impl Options {
    fn read(options: TokenStream, refusals: &mut Refusals) -> Self {
        const KNOWN: &str = "`name = \"…\"` or `crate = path`";
        let mut read = Options { name: None, polypool: default_crate() };
        for setting in Setting::read_all(options, KNOWN, refusals) {
            if setting.key == "name" {
                match setting.string().map(|name| name.value()) {
                    Some(name) if !name.trim().is_empty() => read.name = Some(name),
                    Some(_) => setting.refuse(
                        refusals,
                        "a task needs a name under which workers find it: write one, or remove `name` to use the path of \
                         the function",
                    ),
                    None => setting.refuse(refusals, "`name` takes a string, such as `name = \"images::resize\"`"),
                }
            } else if setting.key == "crate" {
                if let Some(path) = setting.path(refusals) {
                    read.polypool = path;
                }
            } else {
                setting.refuse_key(
                    refusals,
                    format!(
                        "`#[task]` has no option `{}`, only {KNOWN}; how a call is run, its timeout and retries, goes to \
                         `submit_with`",
                        setting.key
                    ),
                );
            }
        }
        read
    }
}

/// An argument of the function, which becomes a field of the struct.
pub(crate) struct Argument {
    pub(crate) name: Ident,
    pub(crate) ty: Type,
    /// Documentation, and how serde is to write it.
    attributes: Vec<Attribute>,
}

impl Argument {
    /// Takes from the function's arguments the attributes that are for the fields.
    pub(crate) fn take_all(function: &mut Function) -> Vec<Self> {
        let mut arguments = Vec::new();
        for argument in &mut function.signature.inputs {
            let FnArg::Typed(argument) = argument else {
                continue;
            };
            let attributes = std::mem::take(&mut argument.attrs);
            let (stay, go) = attributes.into_iter().partition(|attribute| refuse::is_lint_level(&attribute.meta));
            argument.attrs = stay;
            if let Pat::Ident(name) = &*argument.pat {
                arguments.push(Argument { name: name.ident.clone(), ty: (*argument.ty).clone(), attributes: go });
            }
        }
        arguments
    }

    /// The field. What derives complain about, they complain about at the first token, so all of them are put where the
    /// type is.
    pub(crate) fn field(&self, visibility: &Visibility, polypool: &Path) -> TokenStream {
        let Argument { name, ty, attributes } = self;
        let at = here(ty.span());
        let name = ident_here(name);
        let (documentation, serde): (Vec<_>, Vec<_>) =
            attributes.iter().partition(|attribute| refuse::is_documentation(&attribute.meta));
        let documentation = if documentation.is_empty() {
            let line = format!("The argument `{}`.", name.unraw());
            quote_spanned!(at=> #[doc = #line])
        } else {
            moved_to(at, quote!(#(#documentation)*))
        };
        let bytes = (serde.is_empty() && is_buffer(ty)).then(|| {
            let with = text(quote!(#polypool::__private::serde_bytes));
            quote_spanned!(at=> #[serde(with = #with)])
        });
        quote!(#documentation #bytes #(#serde)* #visibility #name: #ty)
    }
}

/// The struct of the call, and all that makes it a task.
fn value(function: &Function, arguments: &[Argument], options: &Options) -> TokenStream {
    let Function { attributes, visibility, signature, .. } = function;
    let polypool = &options.polypool;
    let private = quote!(#polypool::__private);

    let name = ident_here(&signature.ident);
    let at = name.span();
    let label = name.unraw().to_string();
    let documentation = documentation(attributes, &label, arguments);
    let deprecated = attributes.iter().filter(|attribute| attribute.path().is_ident("deprecated"));
    let serde = text(quote!(#private::serde));
    let fields = arguments.iter().map(|argument| argument.field(visibility, polypool));
    let derives = moved_to(at, quote!(#[derive(#private::serde::Serialize, #private::serde::Deserialize)]));
    let debug = if arguments.is_empty() {
        quote!(formatter.write_str(#label))
    } else {
        // Not the arguments: they need not have `Debug`, and may be large, or secret.
        quote!(formatter.debug_struct(#label).finish_non_exhaustive())
    };

    let result = match &signature.output {
        ReturnType::Default => quote!(()),
        ReturnType::Type(_, result) => result.to_token_stream(),
    };
    let task_name = match &options.name {
        Some(name) => quote!(#name),
        None => quote!(::core::concat!(::core::module_path!(), "::", #label)),
    };
    let signature_text = signature_text(arguments, &signature.output);
    let is_async = signature.asyncness.is_some();
    let names = arguments.iter().map(|argument| ident_here(&argument.name));
    let call = {
        let arguments = quote_spanned!(at=> (#(self.#names),*));
        if is_async {
            let call = quote_spanned!(at=> #name #arguments);
            quote_spanned!(at=> #polypool::Run::future(#call))
        } else {
            quote!(#polypool::Run::Ready(#name #arguments))
        }
    };
    let output_codec = output_codec(&signature.output, polypool).map(|codec| moved_to(at, codec));

    let blocks = moved_to(at, blocks(arguments, &signature.output, polypool));

    // What the compiler finds wrong with these, it shows where they say they are: at the name, each thing once.
    let structure = quote_spanned!(at=> struct #name { #(#fields),* });
    let head = moved_to(at, quote!(impl #polypool::Task for #name));
    let run = moved_to(at, quote!(fn run(self) -> #polypool::Run<Self::Output>));
    let items = quote! {
        type Output = #result;
        const NAME: &'static ::core::primitive::str = #task_name;
        const SIGNATURE: &'static ::core::primitive::str = #signature_text;
        const IS_ASYNC: ::core::primitive::bool = #is_async;
        const BY_POSITION: ::core::primitive::bool = true;

        #run {
            #call
        }

        #output_codec

        #blocks
    };
    let implementation = quote_spanned!(at=> #head { #items });
    let registration = moved_to(at, quote!(#polypool::register!(#name);));

    quote! {
        #(#documentation)*
        #(#deprecated)*
        #[allow(
            non_camel_case_types,
            non_snake_case,
            unreachable_pub,
            clippy::struct_excessive_bools,
            clippy::struct_field_names,
        )]
        #derives
        #[serde(crate = #serde)]
        #[must_use = "this is a call as a value, which does nothing until it is submitted to an executor"]
        #visibility #structure

        #[allow(deprecated, unused_imports, clippy::needless_borrow)]
        const _: () = {
            impl ::core::fmt::Debug for #name {
                fn fmt(&self, formatter: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                    #debug
                }
            }

            #implementation

            #registration
        };
    }
}

/// The documentation of the struct: what the function says before its first heading or example, and what this is.
///
/// Not the rest, because `# Errors` and `# Panics` are about running, and examples would be tested twice.
fn documentation(attributes: &[Attribute], label: &str, arguments: &[Argument]) -> Vec<TokenStream> {
    let mut emitted = Vec::new();
    let mut lines = Vec::new();
    for attribute in attributes.iter().filter(|attribute| refuse::is_documentation(&attribute.meta)) {
        match &attribute.meta {
            Meta::NameValue(meta) => {
                if let Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) = &meta.value {
                    lines.extend(text.value().split('\n').map(str::to_owned));
                }
            }
            // `#[doc(hidden)]` and its like.
            _ => emitted.push(attribute.to_token_stream()),
        }
    }
    let ends =
        |line: &String| ["# ", "## ", "### ", "```", "~~~"].iter().any(|start| line.trim_start().starts_with(start));
    let end = lines.iter().position(ends).unwrap_or(lines.len());
    lines.truncate(end);
    while lines.last().is_some_and(|line| line.trim().is_empty()) {
        lines.pop();
    }
    if !lines.is_empty() {
        lines.push(String::new());
    }
    let names: Vec<String> = arguments.iter().map(|argument| argument.name.unraw().to_string()).collect();
    let call = if names.is_empty() { format!("{label} {{}}") } else { format!("{label} {{ {} }}", names.join(", ")) };
    lines.push(format!(
        " `{call}` is the call of [`{label}()`](fn@{label}) as a value: plain data that any executor can run."
    ));
    emitted.extend(lines.iter().map(|line| quote!(#[doc = #line])));
    emitted
}

/// `fn(n: u64, data: Vec<u8>) -> bool`
pub(crate) fn signature_text(arguments: &[Argument], output: &ReturnType) -> String {
    let arguments: Vec<String> = arguments
        .iter()
        .map(|argument| format!("{}: {}", argument.name.unraw(), text(argument.ty.to_token_stream())))
        .collect();
    let result = match output {
        ReturnType::Type(_, result) if !is_unit(result) => {
            format!(" -> {}", text(result.to_token_stream()))
        }
        _ => String::new(),
    };
    format!("fn({}){result}", arguments.join(", "))
}

/// How the result is encoded, if it is a byte buffer: as one block, not byte by byte.
fn output_codec(output: &ReturnType, polypool: &Path) -> Option<TokenStream> {
    let ReturnType::Type(_, result) = output else {
        return None;
    };
    let private = quote!(#polypool::__private);
    let codec = if is_buffer(result) {
        quote!(#private::serde_bytes)
    } else if holds(result, "result", "Result").is_some_and(is_vec_of_bytes) {
        quote!(#private::result_bytes)
    } else {
        return None;
    };
    Some(quote! {
        fn serialize_output<S: #private::serde::Serializer>(
            output: &Self::Output,
            serializer: S,
        ) -> ::core::result::Result<S::Ok, S::Error> {
            #codec::serialize(output, serializer)
        }

        fn deserialize_output<'de, D: #private::serde::Deserializer<'de>>(
            deserializer: D,
        ) -> ::core::result::Result<Self::Output, D::Error> {
            #codec::deserialize(deserializer)
        }
    })
}

/// How large buffers get past the encoding: for each place that is written like one. Those whose encoding the user has
/// described stay with it.
fn blocks(arguments: &[Argument], output: &ReturnType, polypool: &Path) -> TokenStream {
    let block = quote!(#polypool::__private::block);
    let bytes = quote!(#polypool::__private::Bytes);
    let option = quote!(::core::option::Option);
    let probe = quote!(use #block::{Known as _, Probe, Unknown as _};);
    let places: Vec<(u32, Ident)> = (0..)
        .zip(arguments)
        .filter(|(_, argument)| {
            let is_described = argument.attributes.iter().any(|attribute| !refuse::is_documentation(&attribute.meta));
            !is_described && is_written_as_buffer(&argument.ty)
        })
        .map(|(place, argument)| (place, ident_here(&argument.name)))
        .collect();
    let (numbers, names): (Vec<_>, Vec<_>) = places.into_iter().unzip();
    let of_arguments = (!names.is_empty()).then(|| {
        quote! {
            fn take_block(&mut self) -> #option<(::core::primitive::u32, #bytes)> {
                #probe
                #(
                    if let #option::Some(block) = (&mut Probe(&mut self.#names)).take_block() {
                        return #option::Some((#numbers, block));
                    }
                )*
                #option::None
            }

            fn put_block(
                &mut self,
                place: ::core::primitive::u32,
                block: ::std::vec::Vec<::core::primitive::u8>,
            ) -> ::core::primitive::bool {
                #probe
                match place {
                    #(#numbers => (&mut Probe(&mut self.#names)).put_block(block),)*
                    _ => false,
                }
            }
        }
    });
    let is_buffer = matches!(output, ReturnType::Type(_, result) if is_written_as_buffer(result));
    let of_output = is_buffer.then(|| {
        quote! {
            fn take_output_block(output: &mut Self::Output) -> #option<#bytes> {
                #probe
                (&mut Probe(output)).take_block()
            }

            fn put_output_block(
                output: &mut Self::Output,
                block: ::std::vec::Vec<::core::primitive::u8>,
            ) -> ::core::primitive::bool {
                #probe
                (&mut Probe(output)).put_block(block)
            }
        }
    });
    quote!(#of_arguments #of_output)
}

/// Whether the type looks like a buffer of bytes, or one in an `Option` or a `Result`.
fn is_written_as_buffer(ty: &Type) -> bool {
    let is_named = || {
        matches!(peel(ty), Type::Path(path)
            if path.path.segments.last().is_some_and(|last| last.ident == "Bytes" || last.ident == "ByteBuf"))
    };
    is_vec_of_bytes(ty)
        || is_named()
        || holds(ty, "option", "Option").is_some_and(is_written_as_buffer)
        || holds(ty, "result", "Result").is_some_and(is_written_as_buffer)
}

/// Whether the type is written `Vec<u8>` or `Option<Vec<u8>>`.
fn is_buffer(ty: &Type) -> bool {
    is_vec_of_bytes(ty) || holds(ty, "option", "Option").is_some_and(is_vec_of_bytes)
}

fn is_vec_of_bytes(ty: &Type) -> bool {
    holds(ty, "vec", "Vec").is_some_and(|element| matches!(peel(element), Type::Path(path) if path.path.is_ident("u8")))
}

/// The first type argument of `ty`, if that is written as the type `name` of the standard library.
fn holds<'a>(ty: &'a Type, module: &str, name: &str) -> Option<&'a Type> {
    let Type::Path(path) = peel(ty) else {
        return None;
    };
    let segments = &path.path.segments;
    let written_so = match segments.len() {
        1 => path.path.leading_colon.is_none(),
        3 => ["std", "core", "alloc"].iter().any(|root| segments[0].ident == root) && segments[1].ident == module,
        _ => false,
    };
    let last = segments.last().filter(|last| written_so && path.qself.is_none() && last.ident == name)?;
    let PathArguments::AngleBracketed(arguments) = &last.arguments else {
        return None;
    };
    match arguments.args.first()? {
        GenericArgument::Type(first) => Some(first),
        _ => None,
    }
}

fn is_unit(ty: &Type) -> bool {
    matches!(peel(ty), Type::Tuple(tuple) if tuple.elems.is_empty())
}

/// The place of `span` in the source, with the hygiene of the macro.
pub(crate) fn here(span: Span) -> Span {
    span.resolved_at(Span::call_site())
}

/// The tokens with one place in the source for all of them.
pub(crate) fn moved_to(at: Span, tokens: TokenStream) -> TokenStream {
    tokens
        .into_iter()
        .map(|token| match token {
            TokenTree::Group(group) => {
                let mut moved = Group::new(group.delimiter(), moved_to(at, group.stream()));
                moved.set_span(at);
                TokenTree::Group(moved)
            }
            mut token => {
                token.set_span(at);
                token
            }
        })
        .collect()
}

/// A name of the user's, written by the macro.
pub(crate) fn ident_here(name: &Ident) -> Ident {
    let mut name = name.clone();
    name.set_span(here(name.span()));
    name
}
