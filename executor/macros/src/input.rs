//! Reading: the function a macro is put on, and the options in the macro's parentheses.
//!
//! The function's body stays a heap of tokens. That is quicker than parsing it, and an editor keeps its completions
//! while the body is half written.

use proc_macro2::{Group, Span, TokenStream, TokenTree};
use quote::ToTokens;
use syn::ext::IdentExt as _;
use syn::parse::{ParseStream, Parser as _};
use syn::{Attribute, Ident, LitStr, Path, Signature, Token, Visibility};

use crate::refuse::Refusals;

/// The function under an attribute.
pub(crate) struct Function {
    pub(crate) attributes: Vec<Attribute>,
    pub(crate) visibility: Visibility,
    pub(crate) signature: Signature,
    pub(crate) body: Group,
}

impl Function {
    /// Reads `item`; what is no function is refused with `otherwise`.
    pub(crate) fn read(item: TokenStream, otherwise: &str) -> syn::Result<Self> {
        let read = |input: ParseStream<'_>| {
            let attributes = input.call(Attribute::parse_outer)?;
            let visibility = input.parse()?;
            if !starts_function(&input.fork())? {
                return Err(syn::Error::new_spanned(input.parse::<TokenStream>()?, otherwise));
            }
            let signature = input.parse()?;
            match input.parse()? {
                TokenTree::Group(body) => Ok(Function { attributes, visibility, signature, body }),
                other => Err(syn::Error::new_spanned(
                    other,
                    "this function needs a body: write `{ … }`, or move it out of the trait",
                )),
            }
        };
        read.parse2(item)
    }
}

impl ToTokens for Function {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        tokens.extend(self.attributes.iter().map(ToTokens::to_token_stream));
        self.visibility.to_tokens(tokens);
        self.signature.to_tokens(tokens);
        self.body.to_tokens(tokens);
    }
}

/// Whether what follows the visibility is a function, whatever its qualifiers.
fn starts_function(input: ParseStream<'_>) -> syn::Result<bool> {
    loop {
        if input.peek(Token![const]) || input.peek(Token![async]) || input.peek(Token![unsafe]) {
            input.parse::<TokenTree>()?;
        } else if input.peek(Token![extern]) {
            input.parse::<syn::Abi>()?;
        } else {
            return Ok(input.peek(Token![fn]));
        }
    }
}

/// One `key = value` of a macro's parentheses.
pub(crate) struct Setting {
    pub(crate) key: Ident,
    value: TokenStream,
}

impl Setting {
    /// Reads all settings. What is none, or is there twice, is refused; `known` says what may be written.
    pub(crate) fn read_all(options: TokenStream, known: &str, refusals: &mut Refusals) -> Vec<Setting> {
        let mut settings: Vec<Setting> = Vec::new();
        let mut rest = options.into_iter().peekable();
        while rest.peek().is_some() {
            let option: TokenStream = rest
                .by_ref()
                .take_while(|token| !matches!(token, TokenTree::Punct(comma) if comma.as_char() == ','))
                .collect();
            match Setting::read.parse2(option.clone()) {
                Ok(setting) if settings.iter().any(|earlier| earlier.key == setting.key) => {
                    refusals.add(&setting.key, format!("`{}` is given twice: remove one", setting.key));
                }
                Ok(setting) => settings.push(setting),
                Err(_) => refusals.add(option, format!("expected {known}")),
            }
        }
        settings
    }

    fn read(input: ParseStream<'_>) -> syn::Result<Self> {
        let key = input.call(Ident::parse_any)?;
        let value = if input.peek(Token![=]) {
            input.parse::<Token![=]>()?;
            input.parse()?
        } else {
            // `flavor` alone, `flavor("…")`, `flavor: "…"`: the key's refusal says how it is written.
            input.parse::<TokenStream>()?;
            TokenStream::new()
        };
        Ok(Setting { key, value })
    }

    /// Refuses this setting, at its value if it has one.
    pub(crate) fn refuse(&self, refusals: &mut Refusals, message: impl ToString) {
        if self.value.is_empty() {
            refusals.add(&self.key, message.to_string());
        } else {
            refusals.add(&self.value, message.to_string());
        }
    }

    /// Refuses the key.
    pub(crate) fn refuse_key(&self, refusals: &mut Refusals, message: impl ToString) {
        refusals.add(&self.key, message.to_string());
    }

    /// The value as a string literal.
    pub(crate) fn string(&self) -> Option<LitStr> {
        syn::parse2(self.value.clone()).ok()
    }

    /// The value as a name.
    pub(crate) fn ident(&self) -> Option<Ident> {
        syn::parse2(self.value.clone()).ok()
    }

    /// The value as a whole number.
    pub(crate) fn number(&self) -> Option<usize> {
        syn::parse2::<syn::LitInt>(self.value.clone()).ok()?.base10_parse().ok()
    }

    /// The value of `crate = path`.
    pub(crate) fn path(&self, refusals: &mut Refusals) -> Option<Path> {
        match Path::parse_mod_style.parse2(self.value.clone()) {
            Ok(path) if path.segments.iter().any(|segment| segment.ident == "$crate") => {
                self.refuse(
                    refusals,
                    "serde needs this path as text, where `$crate` means nothing: write the name of the crate, such as \
                     `crate = ::my_crate::polypool`",
                );
                None
            }
            Ok(path) => Some(path),
            Err(_) => {
                let message = match self.string() {
                    Some(_) => "write the path without quotes, such as `crate = my_crate::polypool`",
                    None => "`crate` takes the path of polypool, such as `crate = my_crate::polypool`",
                };
                self.refuse(refusals, message);
                None
            }
        }
    }
}

/// The path under which the expansion finds polypool unless `crate = path` says another.
pub(crate) fn default_crate() -> Path {
    let mut path = Path::from(Ident::new("polypool", Span::call_site()));
    path.leading_colon = Some(Token![::](Span::call_site()));
    path
}
