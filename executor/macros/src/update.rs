//! `#[update]`: the function as written, and beside it the step as a value, which travels to a manager.

use proc_macro2::TokenStream;
use quote::{ToTokens, quote};
use syn::ext::IdentExt as _;
use syn::{FnArg, Path, ReturnType, Type};

use crate::input::{Function, Setting, default_crate};
use crate::refuse::{self, Refusals, peel, text};
use crate::task::{Argument, ident_here, signature_text};

const WHAT: &str = "an update";

/// Expands `#[update(options)] item`.
pub(crate) fn expand(options: TokenStream, item: TokenStream) -> TokenStream {
    let otherwise = "an update is a function: put `#[update]` on a `fn` whose first argument is a `&mut` of the value";
    let mut function = match Function::read(item.clone(), otherwise) {
        Ok(function) => function,
        Err(error) => {
            let error = error.to_compile_error();
            return quote!(#item #error);
        }
    };
    let mut refusals = Refusals::default();
    let options = Options::read(options, &mut refusals);
    let target = check(&function, &mut refusals);
    let mut arguments = Argument::take_all(&mut function);
    match target {
        Some(target) if refusals.is_empty() && !arguments.is_empty() => {
            arguments.remove(0);
            let written = write(&function, &target, &arguments, &options);
            quote!(#function #written)
        }
        _ => {
            let function = (!refusals.no_function).then(|| quote!(#[allow(dead_code)] #function));
            let errors = refusals.into_compile_errors();
            quote!(#function #errors)
        }
    }
}

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
                match setting.string().map(|name| name.value()).filter(|name| !name.trim().is_empty()) {
                    Some(name) => read.name = Some(name),
                    None => setting.refuse(refusals, "`name` takes a string, such as `name = \"shop::add\"`"),
                }
            } else if setting.key == "crate" {
                if let Some(path) = setting.path(refusals) {
                    read.polypool = path;
                }
            } else {
                setting.refuse_key(refusals, format!("`#[update]` has no option `{}`, only {KNOWN}", setting.key));
            }
        }
        read
    }
}

/// Checks the signature; the result is the type of the value that is changed.
fn check(function: &Function, refusals: &mut Refusals) -> Option<Type> {
    let signature = &function.signature;
    refuse::qualifiers(signature, WHAT, refusals);
    refuse::no_generics(WHAT, &signature.generics, refusals);
    if let Some(token) = &signature.asyncness {
        refusals.add(token, "an update is made at once, while nobody else reaches the value: remove `async`");
    }
    let result = match &signature.output {
        ReturnType::Default => None,
        ReturnType::Type(_, result) => Some(&**result),
    };
    let rest = signature.inputs.iter().skip(1).filter_map(|argument| match argument {
        FnArg::Typed(argument) => Some(argument),
        FnArg::Receiver(_) => None,
    });
    refuse::border(WHAT, rest, result, refusals);
    const FIRST: &str = "the first argument of an update is the value it changes: write `value: &mut T`, in a dict \
                         `value: &mut Option<T>`, which is `None` for an absent key";
    match signature.inputs.first() {
        Some(FnArg::Typed(first)) => match peel(&first.ty) {
            Type::Reference(reference) if reference.mutability.is_some() && reference.lifetime.is_none() => {
                if matches!(&*first.pat, syn::Pat::Ident(_)) {
                    return Some((*reference.elem).clone());
                }
                refusals.add(&first.pat, "write a name for the value, such as `value`, and take it apart in the body");
            }
            _ => refusals.add(&first.ty, FIRST),
        },
        Some(FnArg::Receiver(receiver)) => {
            refusals.add(receiver, "an update is a free function: move it out of the `impl`")
        }
        None => refusals.add(&signature.ident, FIRST),
    }
    None
}

fn write(function: &Function, target: &Type, arguments: &[Argument], options: &Options) -> TokenStream {
    let Function { visibility, signature, .. } = function;
    let polypool = &options.polypool;
    let private = quote!(#polypool::__private);
    let serde = text(quote!(#private::serde));
    let name = ident_here(&signature.ident);
    let label = name.unraw().to_string();
    let fields = arguments.iter().map(|argument| argument.field(visibility, polypool));
    let names = arguments.iter().map(|argument| ident_here(&argument.name));
    let result = match &signature.output {
        ReturnType::Default => quote!(()),
        ReturnType::Type(_, result) => result.to_token_stream(),
    };
    let update_name = match &options.name {
        Some(name) => quote!(#name),
        None => quote!(::core::concat!(::core::module_path!(), "::", #label)),
    };
    let signature_text =
        format!("{} of &mut {}", signature_text(arguments, &signature.output), text(target.to_token_stream()));
    let documentation = format!(" The step [`{label}()`](fn@{label}) as a value: plain data that a manager can take.");
    quote! {
        #[doc = #documentation]
        #[allow(non_camel_case_types, non_snake_case, unreachable_pub, clippy::struct_excessive_bools)]
        #[derive(#private::serde::Serialize, #private::serde::Deserialize)]
        #[serde(crate = #serde)]
        #[must_use = "this is a step as a value, which does nothing until it is given to a manager"]
        #visibility struct #name { #(#fields),* }

        const _: () = {
            impl ::core::fmt::Debug for #name {
                fn fmt(&self, formatter: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                    formatter.debug_struct(#label).finish_non_exhaustive()
                }
            }

            impl #polypool::manager::Update for #name {
                type Target = #target;
                type Output = #result;
                const NAME: &'static ::core::primitive::str = #update_name;
                const SIGNATURE: &'static ::core::primitive::str = #signature_text;

                fn apply(self, target: &mut Self::Target) -> Self::Output {
                    #name(target, #(self.#names),*)
                }
            }

            #[#private::linkme::distributed_slice(#private::manager::UPDATES)]
            #[linkme(crate = #private::linkme)]
            static __POLYPOOL_REGISTRATION: #private::manager::UpdateRegistration =
                #private::manager::UpdateRegistration::of::<#name>();
        };
    }
}
