//! `#[managed]` on a trait and on an `impl` of one: one proxy for all types that implement the trait.
//!
//! On the trait it writes the proxy, and the dispatcher, which is generic: it calls the methods of whatever value it
//! holds. On an `impl` of the trait it registers the type under the proxy, so that a manager in another process finds
//! it by its name.

use proc_macro2::TokenStream;
use quote::{ToTokens, format_ident, quote};
use syn::ext::IdentExt as _;
use syn::{Ident, ImplItemFn, ItemImpl, ItemTrait, Path, PathArguments, TraitItem, TraitItemFn};

use crate::managed::{Exported, Options, decode_method, private_name, proxy_item, skip, type_name};
use crate::refuse::{self, Refusals, text};

/// Functions that the proxy of a trait has of its own.
const OWN: [&str; 2] = ["create", "host"];

/// Traits that are hardly anybody's own.
const FOREIGN: [&str; 6] = ["Clone", "Copy", "Debug", "Default", "Display", "Drop"];

/// Expands `#[managed(options)] trait …`.
pub(crate) fn expand(options: TokenStream, item: TokenStream) -> TokenStream {
    let mut item: ItemTrait = match syn::parse2(item) {
        Ok(item) => item,
        Err(error) => return error.to_compile_error(),
    };
    let mut refusals = Refusals::default();
    let options = Options::read(options, &mut refusals);
    let exported = read(&mut item, &options, &mut refusals);
    if refusals.is_empty() {
        let written = write(&item, &exported, &options);
        quote!(#item #written)
    } else {
        let errors = refusals.into_compile_errors();
        quote!(#item #errors)
    }
}

fn read(item: &mut ItemTrait, options: &Options, refusals: &mut Refusals) -> Exported {
    refuse::no_generics("a managed trait", &item.generics, refusals);
    if let Some(token) = &item.unsafety {
        refusals.add(token, "a manager calls the methods of a trait for anybody who asks: it can't be `unsafe`");
    }
    if options.name.is_some() {
        let message = "a trait has no name to be found by, the types that implement it have: put `#[managed(name = \"…\")]` \
                       on an `impl`";
        refusals.add(&item.ident, message);
    }
    let mut exported = Exported::default();
    for part in &mut item.items {
        match part {
            TraitItem::Fn(function) => {
                if skip(&mut function.attrs, refusals) {
                    continue;
                }
                exported.add(&as_method(function, &item.vis), &item.ident, refusals);
            }
            TraitItem::Type(associated) => refusals.add(
                &associated.ident,
                "one proxy stands for all types that implement the trait, so nothing in it may depend on which it is: write the \
                 type itself",
            ),
            _ => {}
        }
    }
    for function in exported.methods.iter().map(|method| &method.function).chain(exported.constructors()) {
        if OWN.iter().any(|own| function.name == own) {
            let message = format!(
                "the proxy has a function `{}` of its own, which puts a value into a manager: give this one another name, or \
                 leave it out with `#[managed(skip)]`",
                function.name
            );
            refusals.add(&function.name, message);
        }
    }
    if exported.methods.is_empty() && refusals.is_empty() {
        refusals.add(
            &item.ident,
            "there is no method that could be called from other processes: write one with `&self` or `&mut self`",
        );
    }
    exported
}

/// The function as it would stand in an `impl`: with the trait's visibility.
fn as_method(function: &TraitItemFn, visibility: &syn::Visibility) -> ImplItemFn {
    ImplItemFn {
        attrs: function.attrs.clone(),
        vis: visibility.clone(),
        defaultness: None,
        sig: function.sig.clone(),
        block: syn::parse_quote!({}),
    }
}

fn proxy_name(name: &Ident) -> Ident {
    format_ident!("{}Proxy", name.unraw(), span = name.span())
}

fn write(item: &ItemTrait, exported: &Exported, options: &Options) -> TokenStream {
    let ItemTrait { ident: name, vis: visibility, .. } = item;
    let polypool = &options.polypool;
    let manager = quote!(#polypool::__private::manager);
    let label = name.unraw().to_string();
    let proxy = options.proxy.clone().unwrap_or_else(|| proxy_name(name));
    let schema = exported.schema(&format!("trait {label}"));
    let remote = exported.methods_of_proxy(&label, polypool);
    let constructors = exported.constructors_by_type(name, polypool);
    let dispatch = exported.dispatch(
        polypool,
        &quote!(&self.0),
        &quote!(&mut self.0),
        |function| quote!(<__T as #name>::#function),
    );
    let made = exported.make(&manager, |function| quote!(<__T as #name>::#function));
    let item = proxy_item(&proxy, visibility, &label, &quote!(<#proxy as #manager::OfTrait>::SCHEMA), polypool);
    let (constructor, arguments) = (private_name("constructor"), private_name("arguments"));
    quote! {
        #item

        #[allow(private_interfaces, private_bounds, unreachable_pub, dead_code)]
        #[allow(clippy::all, clippy::pedantic, clippy::nursery)]
        impl #proxy {
            #(#constructors)*
            #(#remote)*
        }

        #[allow(private_interfaces, private_bounds, unreachable_pub, dead_code, unused_variables)]
        #[allow(clippy::all, clippy::pedantic, clippy::nursery)]
        const _: () = {
            // The names of the user are resolved in here, so that what is defined has names that are nobody's.
            /// A value of some type, as an object.
            struct __PolypoolObject<__T>(__T);

            impl<__T: #name + ::core::marker::Send + ::core::marker::Sync + 'static> #polypool::manager::Managed
                for __PolypoolObject<__T>
            {
                type Proxy = #proxy;
                const NAME: &'static ::core::primitive::str = #label;
                const SCHEMA: &'static ::core::primitive::str = #schema;

                #dispatch

                fn construct(
                    #constructor: ::core::primitive::u32,
                    #arguments: &[::core::primitive::u8],
                ) -> ::core::result::Result<Self, #manager::Failed> {
                    let made: ::core::result::Result<__T, #manager::Failed> = match #constructor {
                        #(#made)*
                        _ => ::core::result::Result::Err(#manager::Failed::unknown(#constructor)),
                    };
                    made.map(__PolypoolObject)
                }

                fn decode(
                    value: &[::core::primitive::u8],
                ) -> ::core::result::Result<Self, #manager::Failed> {
                    ::core::result::Result::Err(#manager::Failed::not_data(#label))
                }
            }

            impl #manager::OfTrait for #proxy {
                const SCHEMA: &'static ::core::primitive::str = #schema;
            }

            impl #proxy {
                /// Puts a value into a manager that runs in this process. Its type need be neither data nor registered.
                ///
                /// # Errors
                /// `InvalidOption` if the server is a process of its own.
                #visibility fn host<__T: #name + ::core::marker::Send + ::core::marker::Sync + 'static>(
                    manager: &#polypool::manager::Manager,
                    value: __T,
                ) -> ::core::result::Result<Self, #polypool::manager::ManagerError> {
                    manager.host(__PolypoolObject(value))
                }

                /// Puts a copy of a value into a manager.
                ///
                /// # Errors
                /// `UnknownType` or `SchemaMismatch` if the server is another program, which has no such type.
                #visibility fn create<__T: #name + #polypool::manager::Implements<Self> + #polypool::manager::Data>(
                    manager: &#polypool::manager::ManagerProxy,
                    value: &__T,
                ) -> #polypool::manager::Call<Self> {
                    manager.create_as::<__T, Self>(value)
                }

                #[doc(hidden)]
                #visibility fn __make<__T: #name + #polypool::manager::Implements<Self>>(
                    constructor: ::core::primitive::u64,
                    arguments: &[::core::primitive::u8],
                ) -> ::core::result::Result<#manager::Made, #manager::Failed> {
                    #manager::made(match <::core::primitive::u32 as ::core::convert::TryFrom<_>>::try_from(constructor) {
                        ::core::result::Result::Ok(constructor) => {
                            <__PolypoolObject<__T> as #polypool::manager::Managed>::construct(constructor, arguments)
                        }
                        ::core::result::Result::Err(_) => {
                            <__T as #polypool::manager::Implements<Self>>::decode(arguments).map(__PolypoolObject)
                        }
                    })
                }
            }
        };
    }
}

/// Expands `#[managed(options)] impl Trait for Type …`.
pub(crate) fn expand_impl(options: TokenStream, item: TokenStream) -> TokenStream {
    let mut refusals = Refusals::default();
    let options = Options::read(options, &mut refusals);
    let written = syn::parse2::<ItemImpl>(item.clone()).ok().and_then(|block| {
        let path = trait_path(&block, &mut refusals)?;
        type_name(&block.self_ty, &mut refusals)?;
        Some(write_impl(&block, &path, &options))
    });
    match written.filter(|_| refusals.is_empty()) {
        Some(written) => quote!(#item #written),
        None => {
            let errors = refusals.into_compile_errors();
            quote!(#item #errors)
        }
    }
}

/// Checks the head of the `impl`; the result is the trait.
fn trait_path(block: &ItemImpl, refusals: &mut Refusals) -> Option<Path> {
    let (negative, path, _) = block.trait_.as_ref()?;
    let last = path.segments.last()?;
    refuse::no_generics("a managed type", &block.generics, refusals);
    if negative.is_some() || FOREIGN.iter().any(|foreign| last.ident == foreign) {
        refusals.add(
            path,
            "this trait has no proxy: `#[managed]` goes on the `impl` of a trait of yours that has `#[managed]` itself, or on the \
             type's own `impl`",
        );
        return None;
    }
    if !matches!(last.arguments, PathArguments::None) {
        refusals.add(path, "a managed trait can't be generic, its proxy stands for one: write one trait for each type");
        return None;
    }
    for function in block.items.iter().filter_map(|item| match item {
        syn::ImplItem::Fn(function) => Some(function),
        _ => None,
    }) {
        let marked =
            |attribute: &&syn::Attribute| attribute.path().segments.last().is_some_and(|last| last.ident == "managed");
        if let Some(mark) = function.attrs.iter().find(marked) {
            refusals.add(mark, "what is left out of the proxy is said on the trait: put `#[managed(skip)]` there");
        }
    }
    Some(path.clone())
}

fn write_impl(block: &ItemImpl, path: &Path, options: &Options) -> TokenStream {
    let polypool = &options.polypool;
    let private = quote!(#polypool::__private);
    let manager = quote!(#private::manager);
    let ty = &block.self_ty;
    let label = format!("{} as {}", text(ty.to_token_stream()), text(path.to_token_stream()));
    let name = options.full_name(&label);
    let mut proxy = path.clone();
    if let Some(last) = proxy.segments.last_mut() {
        last.ident = options.proxy.clone().unwrap_or_else(|| proxy_name(&last.ident));
    }
    let decode = decode_method(ty, &label, &manager);
    quote! {
        #[allow(clippy::all, clippy::pedantic, clippy::nursery)]
        const _: () = {
            impl #polypool::manager::Implements<#proxy> for #ty {
                const NAME: &'static ::core::primitive::str = #name;

                #decode
            }

            #[#private::linkme::distributed_slice(#manager::MANAGED)]
            #[linkme(crate = #private::linkme)]
            static __POLYPOOL_REGISTRATION: #manager::ManagedRegistration =
                #manager::ManagedRegistration::of_implementor::<#ty, #proxy>(#proxy::__make::<#ty>);
        };
    }
}
