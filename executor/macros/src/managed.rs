//! `#[managed]`: an `impl` as written, and beside it a proxy with the same methods and the dispatcher that a manager calls.
//!
//! Of the methods, the public ones are the object's; private ones are its own business. A function without `self` that returns
//! the type is a constructor: on the proxy it takes the manager first, and runs there.

use proc_macro2::TokenStream;
use quote::{ToTokens, format_ident, quote};
use syn::ext::IdentExt as _;
use syn::{
    Attribute, FnArg, GenericArgument, Ident, ImplItem, ImplItemFn, ItemImpl, Meta, Pat, PatType, Path, PathArguments,
    ReturnType, Type, Visibility,
};

use crate::input::{Setting, default_crate};
use crate::refuse::{self, Refusals, peel, text};
use crate::task::ident_here;

const METHOD: &str = "a managed method";

/// Expands `#[managed(options)] item`.
pub(crate) fn expand(options: TokenStream, item: TokenStream) -> TokenStream {
    let mut block: ItemImpl = match syn::parse2(item.clone()) {
        Ok(block) => block,
        Err(_) => {
            let error = syn::Error::new_spanned(
                &item,
                "put `#[managed]` on the `impl` of a type whose values a manager is to hold: `impl Counter { … }`",
            )
            .to_compile_error();
            return quote!(#item #error);
        }
    };
    let mut refusals = Refusals::default();
    let options = Options::read(options, &mut refusals);
    let name = check(&block, &mut refusals);
    let exported = name.as_ref().map(|name| Exported::take(&mut block, name, &mut refusals)).unwrap_or_default();
    match name {
        Some(name) if refusals.is_empty() => {
            let written = write(&block, &name, &exported, &options);
            quote!(#block #written)
        }
        _ => {
            let errors = refusals.into_compile_errors();
            quote!(#block #errors)
        }
    }
}

/// What stands in the parentheses of the macro.
struct Options {
    name: Option<String>,
    proxy: Option<Ident>,
    polypool: Path,
}

impl Options {
    fn read(options: TokenStream, refusals: &mut Refusals) -> Self {
        const KNOWN: &str = "`name = \"…\"`, `proxy = Name` or `crate = path`";
        let mut read = Options { name: None, proxy: None, polypool: default_crate() };
        for setting in Setting::read_all(options, KNOWN, refusals) {
            if setting.key == "name" {
                match setting.string().map(|name| name.value()).filter(|name| !name.trim().is_empty()) {
                    Some(name) => read.name = Some(name),
                    None => setting.refuse(refusals, "`name` takes a string, such as `name = \"shop::Counter\"`"),
                }
            } else if setting.key == "proxy" {
                match setting.ident() {
                    Some(name) => read.proxy = Some(name),
                    None => {
                        setting.refuse(refusals, "`proxy` takes the name of a new type, such as `proxy = CounterProxy`")
                    }
                }
            } else if setting.key == "crate" {
                if let Some(path) = setting.path(refusals) {
                    read.polypool = path;
                }
            } else {
                setting.refuse_key(refusals, format!("`#[managed]` has no option `{}`, only {KNOWN}", setting.key));
            }
        }
        read
    }
}

/// Checks the head of the `impl`; the result is the name of the type.
fn check(block: &ItemImpl, refusals: &mut Refusals) -> Option<Ident> {
    if let Some((_, path, _)) = &block.trait_ {
        refusals.add(
            path,
            "`#[managed]` goes on the type's own `impl`, whose methods become the object's: write `impl Type { … }` with \
             methods that call those of the trait",
        );
    }
    if let Some(token) = &block.unsafety {
        refusals.add(token, "an `impl` without a trait is not `unsafe`: remove it");
    }
    refuse::no_generics("a managed type", &block.generics, refusals);
    match peel(&block.self_ty) {
        Type::Path(path) if path.qself.is_none() => {
            let last = path.path.segments.last()?;
            if last.arguments.is_empty() {
                return Some(last.ident.clone());
            }
            refusals.add(
                &block.self_ty,
                "a managed type has a name of its own, by which the server finds it: wrap this one, \
                 `struct Scores(HashMap<String, u64>);`",
            );
            None
        }
        _ => {
            refusals
                .add(&block.self_ty, "a managed type is a `struct` or an `enum` of yours: wrap this one in a `struct`");
            None
        }
    }
}

/// What can be called from other processes.
#[derive(Default)]
struct Exported {
    methods: Vec<Method>,
    constructors: Vec<Constructor>,
}

struct Method {
    function: Callable,
    exclusive: bool,
    result: Type,
}

struct Constructor {
    function: Callable,
    fallible: bool,
}

struct Callable {
    name: Ident,
    visibility: Visibility,
    documentation: Vec<Attribute>,
    arguments: Vec<(Ident, Type)>,
}

impl Exported {
    /// Finds what is exported, and takes the marks of this macro away.
    fn take(block: &mut ItemImpl, name: &Ident, refusals: &mut Refusals) -> Self {
        let mut exported = Exported::default();
        for item in &mut block.items {
            let ImplItem::Fn(function) = item else { continue };
            let skipped = skip(function, refusals);
            if skipped || matches!(function.vis, Visibility::Inherited) {
                continue;
            }
            exported.add(function, name, refusals);
        }
        if exported.methods.is_empty() && refusals.is_empty() {
            refusals.add(
                &block.self_ty,
                "there is no method that could be called from other processes: make one `pub`, with `&self` or `&mut self`",
            );
        }
        exported
    }

    fn add(&mut self, function: &ImplItemFn, name: &Ident, refusals: &mut Refusals) {
        let signature = &function.sig;
        let arguments = || {
            signature.inputs.iter().filter_map(|argument| match argument {
                FnArg::Typed(argument) => Some(argument),
                FnArg::Receiver(_) => None,
            })
        };
        let result = match &signature.output {
            ReturnType::Default => syn::parse_quote!(()),
            ReturnType::Type(_, result) => (**result).clone(),
        };
        let Some(receiver) = signature.receiver() else {
            if let Some(fallible) = makes(&result, name) {
                common(function, "a managed constructor", refusals);
                refuse::border("a managed constructor", arguments(), None, refusals);
                self.constructors.push(Constructor { function: Callable::of(function, arguments()), fallible });
            }
            // Any other associated function is called where it is.
            return;
        };
        common(function, METHOD, refusals);
        if receiver.reference.is_none() || receiver.colon_token.is_some() {
            refusals.add(
                receiver,
                "a managed method takes `&self` or `&mut self`, for the value stays in the manager: write one of these, or \
                 put `#[managed(skip)]` on the method",
            );
        }
        refuse::border(METHOD, arguments(), Some(&result), refusals);
        self.methods.push(Method {
            function: Callable::of(function, arguments()),
            exclusive: receiver.mutability.is_some(),
            result,
        });
    }
}

/// What neither methods nor constructors can be.
fn common(function: &ImplItemFn, what: &str, refusals: &mut Refusals) {
    let signature = &function.sig;
    refuse::qualifiers(signature, what, refusals);
    refuse::no_generics(what, &signature.generics, refusals);
    if let Some(token) = &signature.asyncness {
        let message = format!(
            "{what} is called by the manager's threads, without a runtime: remove `async`; the proxy's calls can be awaited \
             all the same"
        );
        refusals.add(token, message);
    }
    for attribute in &function.attrs {
        if attribute.path().is_ident("cfg") || attribute.path().is_ident("cfg_attr") {
            refusals.add(
                attribute,
                "methods that are there in one program and not in another would not fit together: put `#[cfg(…)]` on the \
                 whole `impl`, and write one for each case",
            );
        }
    }
}

impl Callable {
    fn of<'a>(function: &ImplItemFn, arguments: impl Iterator<Item = &'a PatType>) -> Self {
        let arguments = arguments.filter_map(|argument| match &*argument.pat {
            Pat::Ident(name) => Some((ident_here(&name.ident), (*argument.ty).clone())),
            _ => None,
        });
        Callable {
            name: ident_here(&function.sig.ident),
            visibility: function.vis.clone(),
            documentation: function.attrs.iter().filter(|one| refuse::is_documentation(&one.meta)).cloned().collect(),
            arguments: arguments.collect(),
        }
    }

    /// `add(&mut self, n: u64) -> u64`
    fn schema(&self, receiver: &str, result: &str) -> String {
        let arguments =
            self.arguments.iter().map(|(name, ty)| format!("{}: {}", name.unraw(), text(ty.to_token_stream())));
        let all: Vec<String> =
            (!receiver.is_empty()).then(|| receiver.to_owned()).into_iter().chain(arguments).collect();
        format!("{}({}){result}", self.name.unraw(), all.join(", "))
    }
}

/// Takes `#[managed(skip)]` away, and says whether it was there.
fn skip(function: &mut ImplItemFn, refusals: &mut Refusals) -> bool {
    let mut skipped = false;
    function.attrs.retain(|attribute| {
        if attribute.path().segments.last().is_none_or(|last| last.ident != "managed") {
            return true;
        }
        let says_skip = matches!(&attribute.meta, Meta::List(list) if list.tokens.to_string() == "skip");
        if !says_skip {
            refusals.add(attribute, "on a method there is only `#[managed(skip)]`, which leaves it out of the proxy");
        }
        skipped |= says_skip;
        false
    });
    skipped
}

/// Whether a result is the type itself, and then whether it is one in a `Result`.
fn makes(result: &Type, name: &Ident) -> Option<bool> {
    let is_own = |ty: &Type| match peel(ty) {
        Type::Path(path) => path.path.is_ident("Self") || path.path.is_ident(name),
        _ => false,
    };
    if is_own(result) {
        return Some(false);
    }
    let Type::Path(path) = peel(result) else { return None };
    let last = path.path.segments.last().filter(|last| last.ident == "Result")?;
    let PathArguments::AngleBracketed(arguments) = &last.arguments else { return None };
    match arguments.args.first()? {
        GenericArgument::Type(first) if is_own(first) => Some(true),
        _ => None,
    }
}

fn write(block: &ItemImpl, name: &Ident, exported: &Exported, options: &Options) -> TokenStream {
    let polypool = &options.polypool;
    let private = quote!(#polypool::__private);
    let manager = quote!(#polypool::__private::manager);
    let ty = &block.self_ty;
    let label = name.unraw().to_string();
    let proxy = options.proxy.clone().unwrap_or_else(|| format_ident!("{}Proxy", name.unraw(), span = name.span()));
    let proxy = ident_here(&proxy);
    let type_name = match &options.name {
        Some(name) => quote!(#name),
        None => quote!(::core::concat!(::core::module_path!(), "::", #label)),
    };

    let schema = {
        let constructors = exported.constructors.iter().map(|made| made.function.schema("", " -> Self"));
        let methods = exported.methods.iter().map(|method| {
            let receiver = if method.exclusive { "&mut self" } else { "&self" };
            let result = match &method.result {
                Type::Tuple(tuple) if tuple.elems.is_empty() => String::new(),
                result => format!(" -> {}", text(result.to_token_stream())),
            };
            method.function.schema(receiver, &result)
        });
        format!("{label} {{ {} }}", constructors.chain(methods).collect::<Vec<_>>().join("; "))
    };

    let mut remote = Vec::new();
    let (mut kinds, mut shared, mut exclusive, mut made) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (number, constructor) in (0u32..).zip(&exported.constructors) {
        let Callable { name, visibility, documentation, arguments } = &constructor.function;
        let (names, types): (Vec<_>, Vec<_>) = arguments.iter().map(|(name, ty)| (name, ty)).unzip();
        let note = format!(" Makes a `{label}` in the manager; its constructor runs there.");
        remote.push(quote! {
            #(#documentation)*
            #[doc = ""]
            #[doc = #note]
            #visibility fn #name(
                manager: &#polypool::manager::ManagerProxy,
                #(#names: #types),*
            ) -> #polypool::manager::Call<Self> {
                manager.construct::<#ty, _>(#number, &(#(#names,)*))
            }
        });
        let call = quote!(<#ty>::#name(#(#names),*));
        let call = if constructor.fallible {
            quote!(#call.map_err(#manager::Failed::constructor))
        } else {
            quote!(::core::result::Result::Ok(#call))
        };
        made.push(quote! {
            #number => {
                let (#(#names,)*): (#(#types,)*) = #manager::arguments(arguments)?;
                #call
            }
        });
    }
    for (number, method) in (0u32..).zip(&exported.methods) {
        let Callable { name, visibility, documentation, arguments } = &method.function;
        let (names, types): (Vec<_>, Vec<_>) = arguments.iter().map(|(name, ty)| (name, ty)).unzip();
        let result = &method.result;
        let note = format!(" A call of [`{label}::{0}`] in the manager.", name.unraw());
        remote.push(quote! {
            #(#documentation)*
            #[doc = ""]
            #[doc = #note]
            #visibility fn #name(&self, #(#names: #types),*) -> #polypool::manager::Call<#result> {
                self.0.call(#number, &(#(#names,)*))
            }
        });
        let is_exclusive = method.exclusive;
        kinds.push(quote!(#number => ::core::option::Option::Some(#is_exclusive)));
        let arm = quote! {
            #number => {
                let (#(#names,)*): (#(#types,)*) = #manager::arguments(arguments)?;
                #manager::result(&<#ty>::#name(self, #(#names),*), result)
            }
        };
        if is_exclusive { exclusive.push(arm) } else { shared.push(arm) }
    }

    let documentation = format!(" Stands for a [`{label}`] in a manager, in any process.");
    quote! {
        #[doc = #documentation]
        #[derive(Clone)]
        #[must_use = "a proxy does nothing by itself"]
        #[allow(unreachable_pub)]
        pub struct #proxy(#manager::Remote);

        #[allow(private_interfaces, unreachable_pub, dead_code, clippy::all, clippy::pedantic, clippy::nursery)]
        impl #proxy {
            #(#remote)*
        }

        #[allow(clippy::all, clippy::pedantic, clippy::nursery, unused_variables)]
        const _: () = {
            impl #polypool::manager::Managed for #ty {
                type Proxy = #proxy;
                const NAME: &'static ::core::primitive::str = #type_name;
                const SCHEMA: &'static ::core::primitive::str = #schema;

                fn is_exclusive(method: ::core::primitive::u32) -> ::core::option::Option<::core::primitive::bool> {
                    match method {
                        #(#kinds,)*
                        _ => ::core::option::Option::None,
                    }
                }

                fn call(
                    &self,
                    method: ::core::primitive::u32,
                    arguments: &[::core::primitive::u8],
                    result: &mut ::std::vec::Vec<::core::primitive::u8>,
                ) -> ::core::result::Result<(), #manager::Failed> {
                    match method {
                        #(#shared)*
                        _ => ::core::result::Result::Err(#manager::Failed::unknown(method)),
                    }
                }

                fn call_mut(
                    &mut self,
                    method: ::core::primitive::u32,
                    arguments: &[::core::primitive::u8],
                    result: &mut ::std::vec::Vec<::core::primitive::u8>,
                ) -> ::core::result::Result<(), #manager::Failed> {
                    match method {
                        #(#exclusive)*
                        _ => ::core::result::Result::Err(#manager::Failed::unknown(method)),
                    }
                }

                fn construct(
                    constructor: ::core::primitive::u32,
                    arguments: &[::core::primitive::u8],
                ) -> ::core::result::Result<Self, #manager::Failed> {
                    match constructor {
                        #(#made)*
                        _ => ::core::result::Result::Err(#manager::Failed::unknown(constructor)),
                    }
                }

                fn decode(
                    value: &[::core::primitive::u8],
                ) -> ::core::result::Result<Self, #manager::Failed> {
                    #[allow(unused_imports)]
                    use #manager::{IsData as _, IsNoData as _};
                    (&#manager::Value::<#ty>::of()).decode_value(value, #label)
                }
            }

            impl #polypool::manager::Proxy for #proxy {
                fn schema() -> ::std::string::String {
                    <::std::string::String as ::core::convert::From<&'static ::core::primitive::str>>::from(
                        <#ty as #polypool::manager::Managed>::SCHEMA,
                    )
                }

                fn from_remote(remote: #manager::Remote) -> Self {
                    #proxy(remote)
                }

                fn remote(&self) -> &#manager::Remote {
                    &self.0
                }
            }

            impl ::core::fmt::Debug for #proxy {
                fn fmt(&self, formatter: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                    ::core::fmt::Debug::fmt(&self.0, formatter)
                }
            }

            impl #private::serde::Serialize for #proxy {
                fn serialize<S: #private::serde::Serializer>(
                    &self,
                    serializer: S,
                ) -> ::core::result::Result<S::Ok, S::Error> {
                    self.0.serialize(serializer)
                }
            }

            impl<'de> #private::serde::Deserialize<'de> for #proxy {
                fn deserialize<D: #private::serde::Deserializer<'de>>(
                    deserializer: D,
                ) -> ::core::result::Result<Self, D::Error> {
                    #manager::Remote::deserialize(deserializer, <Self as #polypool::manager::Proxy>::schema()).map(#proxy)
                }
            }

            #[#private::linkme::distributed_slice(#manager::MANAGED)]
            #[linkme(crate = #private::linkme)]
            static REGISTRATION: #manager::ManagedRegistration = #manager::ManagedRegistration::of::<#ty>();
        };
    }
}
