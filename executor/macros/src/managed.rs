//! `#[managed]` on the `impl` of a type: the `impl` as written, and beside it a proxy with the same methods and the
//! dispatcher that a manager calls. (On a trait, and on an `impl` of one: `managed_trait.rs`, which takes much from
//! here.)
//!
//! Of the methods, the public ones are the object's; private ones are its own business. A function without `self` that
//! returns the type is a constructor: on the proxy it takes the manager first, and runs there.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, format_ident, quote};
use syn::ext::IdentExt as _;
use syn::{
    Attribute, FnArg, GenericArgument, Ident, ImplItem, ImplItemFn, ItemImpl, ItemTrait, Meta, Pat, PatType, Path,
    PathArguments, ReturnType, Type, Visibility,
};

use crate::input::{Setting, default_crate};
use crate::managed_trait;
use crate::refuse::{self, Refusals, peel, text};
use crate::task::ident_here;

const METHOD: &str = "a managed method";

/// Expands `#[managed(options)] item`.
pub(crate) fn expand(options: TokenStream, item: TokenStream) -> TokenStream {
    let mut block: ItemImpl = match syn::parse2(item.clone()) {
        Ok(ItemImpl { trait_: Some(_), .. }) => return managed_trait::expand_impl(options, item),
        Ok(block) => block,
        Err(_) if syn::parse2::<ItemTrait>(item.clone()).is_ok() => return managed_trait::expand(options, item),
        Err(_) => {
            let error = syn::Error::new_spanned(
                &item,
                "put `#[managed]` on the `impl` of a type whose values a manager is to hold, `impl Counter { … }`, or on a trait",
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
pub(crate) struct Options {
    pub(crate) name: Option<String>,
    pub(crate) proxy: Option<Ident>,
    pub(crate) polypool: Path,
}

impl Options {
    pub(crate) fn read(options: TokenStream, refusals: &mut Refusals) -> Self {
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
    if let Some(token) = &block.unsafety {
        refusals.add(token, "an `impl` without a trait is not `unsafe`: remove it");
    }
    refuse::no_generics("a managed type", &block.generics, refusals);
    type_name(&block.self_ty, refusals)
}

/// The name of the type that an `impl` is for.
pub(crate) fn type_name(of: &Type, refusals: &mut Refusals) -> Option<Ident> {
    match peel(of) {
        Type::Path(path) if path.qself.is_none() => {
            let last = path.path.segments.last()?;
            if last.arguments.is_empty() {
                return Some(last.ident.clone());
            }
            refusals.add(
                of,
                "a managed type has a name of its own, by which the server finds it: wrap this one, \
                 `struct Scores(HashMap<String, u64>);`",
            );
            None
        }
        _ => {
            refusals.add(of, "a managed type is a `struct` or an `enum` of yours: wrap this one in a `struct`");
            None
        }
    }
}

/// What can be called from other processes.
#[derive(Default)]
pub(crate) struct Exported {
    pub(crate) methods: Vec<Method>,
    pub(crate) constructors: Vec<Constructor>,
}

pub(crate) struct Method {
    pub(crate) function: Callable,
    exclusive: bool,
    result: Type,
}

pub(crate) struct Constructor {
    pub(crate) function: Callable,
    fallible: bool,
}

pub(crate) struct Callable {
    pub(crate) name: Ident,
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
            let skipped = skip(&mut function.attrs, refusals);
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

    /// Takes a function in; `name` is the type, which a constructor may return.
    pub(crate) fn add(&mut self, function: &ImplItemFn, name: &Ident, refusals: &mut Refusals) {
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
pub(crate) fn skip(attributes: &mut Vec<Attribute>, refusals: &mut Refusals) -> bool {
    let mut skipped = false;
    attributes.retain(|attribute| {
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

/// A name for a local variable of what the macro writes, which is not that of an argument of the user's that is spelt
/// the same.
pub(crate) fn private_name(name: &str) -> Ident {
    Ident::new(name, Span::mixed_site())
}

fn write(block: &ItemImpl, name: &Ident, exported: &Exported, options: &Options) -> TokenStream {
    let polypool = &options.polypool;
    let private = quote!(#polypool::__private);
    let manager = quote!(#private::manager);
    let ty = &block.self_ty;
    let label = name.unraw().to_string();
    let proxy = options.proxy.clone().unwrap_or_else(|| format_ident!("{}Proxy", name.unraw(), span = name.span()));
    let type_name = options.full_name(&label);
    let schema = exported.schema(&label);

    let remote = exported.methods_of_proxy(&label, polypool);
    let at = private_name("manager");
    let constructors = exported.numbered_constructors().map(|(number, constructor)| {
        let Callable { name, visibility, documentation, .. } = &constructor.function;
        let (names, types) = constructor.function.parts();
        let note = format!(" Makes a `{label}` in the manager; its constructor runs there.");
        quote! {
            #(#documentation)*
            #[doc = ""]
            #[doc = #note]
            #visibility fn #name(
                #at: &#polypool::manager::ManagerProxy,
                #(#names: #types),*
            ) -> #polypool::manager::Call<Self> {
                #at.construct::<#ty, _>(#number, &(#(#names,)*))
            }
        }
    });
    let dispatch = exported.dispatch(polypool, &quote!(self), &quote!(self), |function| quote!(<#ty>::#function));
    let made = exported.make(&manager, |function| quote!(<#ty>::#function));
    let item = proxy_item(
        &proxy,
        &syn::parse_quote!(pub),
        &label,
        &quote!(<#ty as #polypool::manager::Managed>::SCHEMA),
        polypool,
    );
    let (constructor, arguments) = (private_name("constructor"), private_name("arguments"));
    let decode = decode_method(&ty, &label, &manager);
    quote! {
        #item

        #[allow(private_interfaces, unreachable_pub, dead_code, clippy::all, clippy::pedantic, clippy::nursery)]
        impl #proxy {
            #(#constructors)*
            #(#remote)*
        }

        #[allow(clippy::all, clippy::pedantic, clippy::nursery, unused_variables)]
        const _: () = {
            impl #polypool::manager::Managed for #ty {
                type Proxy = #proxy;
                const NAME: &'static ::core::primitive::str = #type_name;
                const SCHEMA: &'static ::core::primitive::str = #schema;

                #dispatch

                fn construct(
                    #constructor: ::core::primitive::u32,
                    #arguments: &[::core::primitive::u8],
                ) -> ::core::result::Result<Self, #manager::Failed> {
                    match #constructor {
                        #(#made)*
                        _ => ::core::result::Result::Err(#manager::Failed::unknown(#constructor)),
                    }
                }

                #decode
            }

            #[#private::linkme::distributed_slice(#manager::MANAGED)]
            #[linkme(crate = #private::linkme)]
            static __POLYPOOL_REGISTRATION: #manager::ManagedRegistration = #manager::ManagedRegistration::of::<#ty>();
        };
    }
}

impl Options {
    /// The name in the registry, of something with this label.
    pub(crate) fn full_name(&self, label: &str) -> TokenStream {
        match &self.name {
            Some(name) => quote!(#name),
            None => quote!(::core::concat!(::core::module_path!(), "::", #label)),
        }
    }
}

impl Callable {
    fn parts(&self) -> (Vec<&Ident>, Vec<&Type>) {
        self.arguments.iter().map(|(name, ty)| (name, ty)).unzip()
    }
}

impl Exported {
    /// All that can be called, with its types.
    pub(crate) fn schema(&self, label: &str) -> String {
        let constructors = self.constructors.iter().map(|made| made.function.schema("", " -> Self"));
        let methods = self.methods.iter().map(|method| {
            let receiver = if method.exclusive { "&mut self" } else { "&self" };
            let result = match &method.result {
                Type::Tuple(tuple) if tuple.elems.is_empty() => String::new(),
                result => format!(" -> {}", text(result.to_token_stream())),
            };
            method.function.schema(receiver, &result)
        });
        format!("{label} {{ {} }}", constructors.chain(methods).collect::<Vec<_>>().join("; "))
    }

    pub(crate) fn constructors(&self) -> impl Iterator<Item = &Callable> {
        self.constructors.iter().map(|constructor| &constructor.function)
    }

    fn numbered_methods(&self) -> impl Iterator<Item = (u32, &Method)> {
        (0u32..).zip(&self.methods)
    }

    fn numbered_constructors(&self) -> impl Iterator<Item = (u32, &Constructor)> {
        (0u32..).zip(&self.constructors)
    }

    /// The methods as the proxy has them.
    pub(crate) fn methods_of_proxy(&self, label: &str, polypool: &Path) -> Vec<TokenStream> {
        let methods = self.numbered_methods().map(|(number, method)| {
            let Callable { name, visibility, documentation, .. } = &method.function;
            let (names, types) = method.function.parts();
            let result = &method.result;
            let note = format!(" A call of [`{label}::{0}`] in the manager.", name.unraw());
            quote! {
                #(#documentation)*
                #[doc = ""]
                #[doc = #note]
                #visibility fn #name(&self, #(#names: #types),*) -> #polypool::manager::Call<#result> {
                    self.0.call(#number, &(#(#names,)*))
                }
            }
        });
        methods.collect()
    }

    /// The constructors of a trait's implementors as the proxy has them: by type.
    pub(crate) fn constructors_by_type(&self, of: &Ident, polypool: &Path) -> Vec<TokenStream> {
        let at = private_name("manager");
        let constructors = self.numbered_constructors().map(|(number, constructor)| {
            let Callable { name, visibility, documentation, .. } = &constructor.function;
            let (names, types) = constructor.function.parts();
            let note = " Makes a value of this type in the manager; its constructor runs there.";
            quote! {
                #(#documentation)*
                #[doc = ""]
                #[doc = #note]
                #visibility fn #name<__T: #of + #polypool::manager::Implements<Self>>(
                    #at: &#polypool::manager::ManagerProxy,
                    #(#names: #types),*
                ) -> #polypool::manager::Call<Self> {
                    #at.construct_as::<__T, Self, _>(#number, &(#(#names,)*))
                }
            }
        });
        constructors.collect()
    }

    /// The functions of `Managed` that call the methods: `function` says how one is called, `shared` and `exclusive` on
    /// what.
    pub(crate) fn dispatch(
        &self,
        polypool: &Path,
        shared: &TokenStream,
        exclusive: &TokenStream,
        function: impl Fn(&Ident) -> TokenStream,
    ) -> TokenStream {
        let manager = quote!(#polypool::__private::manager);
        let [method, arguments, result] = ["method", "arguments", "result"].map(private_name);
        let (mut kinds, mut shared_arms, mut exclusive_arms) = (Vec::new(), Vec::new(), Vec::new());
        for (number, exported) in self.numbered_methods() {
            let (names, types) = exported.function.parts();
            let is_exclusive = exported.exclusive;
            let on = if is_exclusive { exclusive } else { shared };
            let function = function(&exported.function.name);
            kinds.push(quote!(#number => ::core::option::Option::Some(#is_exclusive)));
            let arm = quote! {
                #number => {
                    let (#(#names,)*): (#(#types,)*) = #manager::arguments(#arguments)?;
                    #manager::result(&#function(#on, #(#names),*), #result)
                }
            };
            if is_exclusive { exclusive_arms.push(arm) } else { shared_arms.push(arm) }
        }
        quote! {
            fn is_exclusive(#method: ::core::primitive::u32) -> ::core::option::Option<::core::primitive::bool> {
                match #method {
                    #(#kinds,)*
                    _ => ::core::option::Option::None,
                }
            }

            fn call(
                &self,
                #method: ::core::primitive::u32,
                #arguments: &[::core::primitive::u8],
                #result: &mut ::std::vec::Vec<::core::primitive::u8>,
            ) -> ::core::result::Result<(), #manager::Failed> {
                match #method {
                    #(#shared_arms)*
                    _ => ::core::result::Result::Err(#manager::Failed::unknown(#method)),
                }
            }

            fn call_mut(
                &mut self,
                #method: ::core::primitive::u32,
                #arguments: &[::core::primitive::u8],
                #result: &mut ::std::vec::Vec<::core::primitive::u8>,
            ) -> ::core::result::Result<(), #manager::Failed> {
                match #method {
                    #(#exclusive_arms)*
                    _ => ::core::result::Result::Err(#manager::Failed::unknown(#method)),
                }
            }
        }
    }

    /// What makes a value, by the number of the constructor.
    pub(crate) fn make(&self, manager: &TokenStream, function: impl Fn(&Ident) -> TokenStream) -> Vec<TokenStream> {
        let arguments = private_name("arguments");
        let made = self.numbered_constructors().map(|(number, constructor)| {
            let (names, types) = constructor.function.parts();
            let function = function(&constructor.function.name);
            let call = quote!(#function(#(#names),*));
            let call = if constructor.fallible {
                quote!(#call.map_err(#manager::Failed::constructor))
            } else {
                quote!(::core::result::Result::Ok(#call))
            };
            quote! {
                #number => {
                    let (#(#names,)*): (#(#types,)*) = #manager::arguments(#arguments)?;
                    #call
                }
            }
        });
        made.collect()
    }
}

/// The method that makes a value of data, or says that its type is none.
pub(crate) fn decode_method(ty: &impl ToTokens, label: &str, manager: &TokenStream) -> TokenStream {
    quote! {
        fn decode(
            value: &[::core::primitive::u8],
        ) -> ::core::result::Result<Self, #manager::Failed> {
            #[allow(unused_imports)]
            use #manager::{IsData as _, IsNoData as _};
            (&#manager::Value::<#ty>::of()).decode_value(value, #label)
        }
    }
}

/// The proxy itself, with what all proxies have.
pub(crate) fn proxy_item(
    proxy: &Ident,
    visibility: &Visibility,
    label: &str,
    schema: &TokenStream,
    polypool: &Path,
) -> TokenStream {
    let private = quote!(#polypool::__private);
    let manager = quote!(#private::manager);
    let documentation = format!(" Stands for a [`{label}`] in a manager, in any process.");
    quote! {
        #[doc = #documentation]
        #[derive(Clone)]
        #[must_use = "a proxy does nothing by itself"]
        #[allow(unreachable_pub)]
        #visibility struct #proxy(#manager::Remote);

        #[allow(clippy::all, clippy::pedantic, clippy::nursery)]
        const _: () = {
            impl #polypool::manager::Proxy for #proxy {
                fn schema() -> ::std::string::String {
                    <::std::string::String as ::core::convert::From<&'static ::core::primitive::str>>::from(#schema)
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
                fn serialize<__S: #private::serde::Serializer>(
                    &self,
                    serializer: __S,
                ) -> ::core::result::Result<__S::Ok, __S::Error> {
                    self.0.serialize(serializer)
                }
            }

            impl<'de> #private::serde::Deserialize<'de> for #proxy {
                fn deserialize<__D: #private::serde::Deserializer<'de>>(
                    deserializer: __D,
                ) -> ::core::result::Result<Self, __D::Error> {
                    #manager::Remote::deserialize(deserializer, <Self as #polypool::manager::Proxy>::schema()).map(#proxy)
                }
            }
        };
    }
}
