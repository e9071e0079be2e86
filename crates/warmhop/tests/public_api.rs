//! The crate's interface as one file, so that a change of it is seen where changes are reviewed.
//!
//! It is read from the sources, with what the core lends to it: every item that can be named from
//! outside, with its public fields, methods and the traits that it has, whatever features are on.
//! Where an item lies, and what comes before what, makes no difference. Auto traits are not in the
//! sources; a test below asks the compiler for those.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{env, fs};

use syn::punctuated::Punctuated;
use syn::{Attribute, Fields, ImplItem, Item, ItemImpl, Type, UseTree, Visibility, parse_quote};

/// Writes the file instead of comparing it.
const WRITE: &str = "WARMHOP_WRITE_API";
/// The attributes that are a part of the interface.
const ATTRIBUTES: [&str; 5] = ["cfg", "deprecated", "derive", "must_use", "non_exhaustive"];

#[test]
fn a_change_of_the_interface_is_seen_in_the_file_that_holds_it() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let crates = Crates::read([
        ("warmhop", manifest.join("src/lib.rs")),
        ("warmhop_core", manifest.join("../warmhop-core/src/lib.rs")),
    ]);
    let items = crates.interface(&["warmhop".to_owned()]);
    let text = prettyplease::unparse(&syn::File { shebang: None, attrs: Vec::new(), items });
    let file = manifest.join("public-api.txt");
    if env::var_os(WRITE).is_some() {
        fs::write(&file, &text).expect("the file can be written");
    }
    let known = fs::read_to_string(&file).unwrap_or_default();
    let (before, now): (BTreeSet<_>, BTreeSet<_>) =
        (known.lines().collect(), text.lines().collect());
    let lines = |sign: &str, lines: Vec<&&str>| -> String {
        lines.iter().map(|line| format!("{sign} {line}\n")).collect()
    };
    assert!(
        text == known,
        "the interface is not what crates/warmhop/public-api.txt holds; if it is to change, \
         `{WRITE}=1 cargo test -p warmhop --all-features --test public_api` writes it anew\n{}{}",
        lines("-", before.difference(&now).collect()),
        lines("+", now.difference(&before).collect()),
    );
}

#[test]
fn public_types_are_send_and_sync() {
    fn goes<T: Send + Sync + 'static>() {}
    goes::<warmhop::Mesh>();
    goes::<warmhop::MeshService>();
    goes::<warmhop::Changes>();
    goes::<warmhop::AppChanges>();
    goes::<warmhop::HopLayer>();
    goes::<warmhop::Readiness>();
    goes::<warmhop::Registers>();
    goes::<warmhop::Session>();
    goes::<warmhop::identity::Authority>();
    goes::<warmhop::identity::FrontDoorTls>();
    goes::<warmhop::identity::Identity>();
    goes::<warmhop::error::ControlError>();
    goes::<warmhop::error::StartMeshError>();
    goes::<warmhop::identity::IdentityError>();
    goes::<warmhop::peer_service::AskPeerError>();
    goes::<warmhop::NotSent>();
    goes::<warmhop::StartError>();
}

/// The name of an item or a module with all that it is in, its crate first.
type Full = Vec<String>;

/// The items of each module.
struct Crates(BTreeMap<Full, Vec<Item>>);

impl Crates {
    fn read(roots: [(&str, PathBuf); 2]) -> Self {
        let mut all = Self(BTreeMap::new());
        for (name, root) in roots {
            let dir = root.parent().expect("it lies in a folder").to_owned();
            all.read_file(&root, &dir, vec![name.to_owned()]);
        }
        all
    }

    fn read_file(&mut self, file: &Path, dir: &Path, module: Full) {
        let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let parsed = syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        self.take(parsed.items, dir, module);
    }

    /// Takes the items of a module; files of modules in it are below `dir`.
    fn take(&mut self, mut items: Vec<Item>, dir: &Path, module: Full) {
        items.retain(|item| !is_hidden(attributes(item)));
        for item in &mut items {
            let Item::Mod(inner) = item else { continue };
            let name = inner.ident.to_string();
            let path: Full = module.iter().cloned().chain([name.clone()]).collect();
            let below = dir.join(&name);
            match inner.content.take() {
                Some((_, items)) => self.take(items, &below, path),
                None => {
                    let file = dir.join(format!("{name}.rs"));
                    let file = if file.exists() { file } else { below.join("mod.rs") };
                    self.read_file(&file, &below, path);
                }
            }
        }
        self.0.insert(module, items);
    }

    /// What can be named in a module from outside, in the order of the names.
    fn interface(&self, module: &[String]) -> Vec<Item> {
        let mut named: BTreeMap<String, Vec<Item>> = BTreeMap::new();
        for item in &self.0[module] {
            if let Item::Use(used) = item {
                if is_public(&used.vis) {
                    for (path, name) in leaves(&used.tree) {
                        let items = match self.find(module, &path, 0) {
                            Some(full) => self.shown(&full, &name),
                            None => vec![parse_of(&format!("pub use {};", path.join("::")))],
                        };
                        named.insert(name, with_attributes(items, &used.attrs));
                    }
                }
            } else if let Some(name) = public_name(item) {
                let full: Full = module.iter().cloned().chain([name.clone()]).collect();
                named.insert(name.clone(), self.shown(&full, &name));
            }
        }
        named.into_values().flatten().collect()
    }

    /// An item, or all of a module, under the name that it has outside.
    fn shown(&self, full: &[String], name: &str) -> Vec<Item> {
        if self.0.contains_key(full) {
            let items = self.interface(full);
            let name = syn::Ident::new(name, proc_macro2::Span::call_site());
            let module = parse_quote!(pub mod #name { #(#items)* });
            return with_attributes(vec![module], self.attributes_of_module(full));
        }
        let (own, module) = full.split_last().expect("an item has a name");
        let item = self.0[module].iter().find(|item| declared(item).as_deref() == Some(own));
        let mut items: Vec<Item> = item.map(bare).into_iter().collect();
        items.extend(self.made_by_macros(module, own));
        assert!(!items.is_empty(), "{} is not in the sources", full.join("::"));
        items.extend(self.implemented(full));
        items
    }

    fn attributes_of_module(&self, full: &[String]) -> &[Attribute] {
        let (own, outer) = full.split_last().expect("a module has a name");
        let items = self.0.get(outer).map(Vec::as_slice).unwrap_or_default();
        let module = items.iter().find_map(|item| match item {
            Item::Mod(module) if module.ident == own => Some(module.attrs.as_slice()),
            _ => None,
        });
        module.unwrap_or_default()
    }

    /// The module or item of these crates that a path means in a module.
    fn find(&self, module: &[String], path: &[String], depth: usize) -> Option<Full> {
        let (first, rest) = path.split_first()?;
        let mut found: Full = match first.as_str() {
            "crate" => vec![module[0].clone()],
            "self" => module.to_vec(),
            "super" => module[..module.len() - 1].to_vec(),
            "warmhop_core" => vec![first.clone()],
            _ => self.named_in(module, first, depth)?,
        };
        for name in rest {
            found = match name.as_str() {
                "super" => found[..found.len() - 1].to_vec(),
                _ => self.named_in(&found, name, depth)?,
            };
        }
        Some(found)
    }

    /// What a name means in a module: what is declared there, or what a `use` brings.
    fn named_in(&self, module: &[String], name: &str, depth: usize) -> Option<Full> {
        let items = self.0.get(module)?;
        let full: Full = module.iter().cloned().chain([name.to_owned()]).collect();
        let is_here = items.iter().any(|item| declared(item).as_deref() == Some(name));
        if is_here || self.0.contains_key(&full) {
            return Some(full);
        }
        if !self.made_by_macros(module, name).is_empty() {
            return Some(full);
        }
        assert!(depth < 16, "{name} is imported in a circle");
        items.iter().find_map(|item| {
            let Item::Use(used) = item else { return None };
            let leaf = leaves(&used.tree).into_iter().find(|(_, known)| known == name);
            self.find(module, &leaf?.0, depth + 1)
        })
    }

    /// What the macros of a module make under this name: the heads of the items in their rules.
    fn made_by_macros(&self, module: &[String], name: &str) -> Vec<Item> {
        let rules = |wanted: &str| {
            self.0[module].iter().find_map(|item| match item {
                Item::Macro(it) if it.ident.as_ref().is_some_and(|name| name == wanted) => {
                    Some(it.mac.tokens.to_string())
                }
                _ => None,
            })
        };
        let mut made = Vec::new();
        for item in &self.0[module] {
            let Item::Macro(it) = item else { continue };
            let is_named = it.mac.tokens.clone().into_iter().any(|token| token.to_string() == name);
            let called = it.mac.path.get_ident().map(ToString::to_string);
            if let Some(rules) = called.filter(|_| is_named).and_then(|called| rules(&called)) {
                let docs = heads(&rules);
                made.push(parse_quote!(made_by_macro! { #name #(#docs)* }));
            }
        }
        made
    }

    /// What is implemented for a type: its own methods first.
    fn implemented(&self, full: &[String]) -> Vec<Item> {
        let mut own: BTreeMap<String, ItemImpl> = BTreeMap::new();
        let mut traits = BTreeMap::new();
        for (module, items) in &self.0 {
            for item in items {
                let Item::Impl(block) = item else { continue };
                let Type::Path(of) = &*block.self_ty else { continue };
                let path: Full = of.path.segments.iter().map(|it| it.ident.to_string()).collect();
                if path == ["Self"] || self.find(module, &path, 0).as_deref() != Some(full) {
                    continue;
                }
                let mut shown = block.clone();
                retain(&mut shown.attrs);
                if let Some((_, of, _)) = &block.trait_ {
                    let path: Full = of.segments.iter().map(|it| it.ident.to_string()).collect();
                    if self.find(module, &path, 0).is_some_and(|it| !self.is_public_trait(&it)) {
                        continue;
                    }
                    shown.items.retain(|item| matches!(item, ImplItem::Type(_)));
                    traits.insert(print(Item::Impl(shown.clone())), shown);
                    continue;
                }
                shown.items = shown.items.iter().filter_map(public_part).collect();
                let head = print(Item::Impl(ItemImpl { items: Vec::new(), ..shown.clone() }));
                match own.get_mut(&head) {
                    Some(known) => known.items.append(&mut shown.items),
                    None => drop(own.insert(head, shown)),
                }
            }
        }
        let own = own.into_values().filter(|block| !block.items.is_empty()).map(|mut block| {
            block.items.sort_by_cached_key(|item| match item {
                ImplItem::Fn(it) => it.sig.ident.to_string(),
                ImplItem::Const(it) => it.ident.to_string(),
                _ => String::new(),
            });
            block
        });
        own.chain(traits.into_values()).map(Item::Impl).collect()
    }

    fn is_public_trait(&self, full: &[String]) -> bool {
        let Some((own, module)) = full.split_last() else { return false };
        let items = self.0.get(module).map(Vec::as_slice).unwrap_or_default();
        let it = items.iter().find(|item| declared(item).as_deref() == Some(own));
        matches!(it, Some(Item::Trait(it)) if is_public(&it.vis))
    }
}

/// The public items that the rules of a macro make, without their bodies.
fn heads(rules: &str) -> Vec<String> {
    let flat = rules.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut heads = Vec::new();
    for word in ["pub fn ", "pub const fn ", "pub struct ", "impl "] {
        for (at, _) in flat.match_indices(word) {
            let end = flat[at..].find(['{', ';']).map_or(flat.len(), |end| at + end);
            heads.push(flat[at..end].trim().to_owned());
        }
    }
    heads
}

fn print(item: Item) -> String {
    prettyplease::unparse(&syn::File { shebang: None, attrs: Vec::new(), items: vec![item] })
}

fn parse_of(text: &str) -> Item {
    syn::parse_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

/// Not shown to users, or there for the crate's own tests alone.
fn is_hidden(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let text = quote::quote!(#attribute).to_string().replace(' ', "");
        text == "#[doc(hidden)]" || text.starts_with("#[cfg(test") || text.contains("cfg(all(test")
    })
}

fn retain(attributes: &mut Vec<Attribute>) {
    attributes.retain(|it| ATTRIBUTES.iter().any(|known| it.path().is_ident(known)));
}

fn with_attributes(mut items: Vec<Item>, more: &[Attribute]) -> Vec<Item> {
    let mut more = more.to_vec();
    more.retain(|attribute| attribute.path().is_ident("cfg"));
    if let Some(item) = items.first_mut().and_then(attributes_mut) {
        let text = |attribute: &Attribute| quote::quote!(#attribute).to_string();
        let known: Vec<String> = item.iter().map(text).collect();
        more.retain(|attribute| !known.contains(&text(attribute)));
        item.splice(0..0, more);
    }
    items
}

/// Each name that a `use` brings, by its path and as it is called then.
fn leaves(tree: &UseTree) -> Vec<(Full, String)> {
    match tree {
        UseTree::Path(path) => {
            let first = path.ident.to_string();
            let rest = leaves(&path.tree).into_iter();
            rest.map(|(path, name)| {
                let own = if path == ["self"] { Vec::new() } else { path };
                let name = if name == "self" { first.clone() } else { name };
                ([first.clone()].into_iter().chain(own).collect(), name)
            })
            .collect()
        }
        UseTree::Name(name) => vec![(vec![name.ident.to_string()], name.ident.to_string())],
        UseTree::Rename(it) => vec![(vec![it.ident.to_string()], it.rename.to_string())],
        UseTree::Group(group) => group.items.iter().flat_map(leaves).collect(),
        // Before a glob of names from outside is written, this test has to resolve it.
        UseTree::Glob(_) => vec![(vec!["*".into()], "*".into())],
    }
}

macro_rules! of_kinds {
    ($item:expr, $it:ident => $value:expr, $($kind:ident)*) => {
        match $item { $(Item::$kind($it) => Some($value),)* _ => None }
    };
}

fn attributes(item: &Item) -> &[Attribute] {
    let known = of_kinds!(item, it => it.attrs.as_slice(),
        Const Enum Fn Impl Macro Mod Static Struct Trait Type Use);
    known.unwrap_or_default()
}

fn attributes_mut(item: &mut Item) -> Option<&mut Vec<Attribute>> {
    of_kinds!(item, it => &mut it.attrs, Const Enum Fn Impl Macro Mod Static Struct Trait Type Use)
}

/// The name of what an item declares; modules are known by their files.
fn declared(item: &Item) -> Option<String> {
    match item {
        Item::Fn(it) => Some(it.sig.ident.to_string()),
        _ => of_kinds!(item, it => it.ident.to_string(), Const Enum Static Struct Trait Type),
    }
}

fn public_name(item: &Item) -> Option<String> {
    let visibility = of_kinds!(item, it => &it.vis, Const Enum Fn Mod Static Struct Trait Type)?;
    let name = match item {
        Item::Mod(it) => Some(it.ident.to_string()),
        _ => declared(item),
    };
    name.filter(|_| is_public(visibility))
}

/// An item without what nobody outside sees of it.
fn bare(item: &Item) -> Item {
    let mut item = item.clone();
    if let Some(attributes) = attributes_mut(&mut item) {
        retain(attributes);
    }
    match &mut item {
        Item::Struct(it) => bare_fields(&mut it.fields),
        Item::Enum(it) => {
            for variant in &mut it.variants {
                retain(&mut variant.attrs);
                variant.fields.iter_mut().for_each(|field| field.attrs.clear());
            }
        }
        Item::Fn(it) => *it.block = parse_quote!({}),
        Item::Const(it) => *it.expr = parse_quote!(_),
        Item::Static(it) => *it.expr = parse_quote!(_),
        Item::Trait(it) => {
            for item in &mut it.items {
                if let syn::TraitItem::Fn(it) = item {
                    retain(&mut it.attrs);
                    it.default = it.default.as_ref().map(|_| parse_quote!({}));
                }
            }
        }
        _ => {}
    }
    item
}

fn bare_fields(fields: &mut Fields) {
    match fields {
        Fields::Named(named) => {
            let all = named.named.len();
            let shown: Punctuated<_, _> =
                named.named.iter().filter(|field| is_public(&field.vis)).cloned().collect();
            named.named = shown;
            named.named.iter_mut().for_each(|field| field.attrs.clear());
            if named.named.len() < all {
                let more: syn::FieldsNamed = parse_quote!({ private_fields: _ });
                named.named.extend(more.named);
            }
        }
        Fields::Unnamed(unnamed) => {
            for field in &mut unnamed.unnamed {
                field.attrs.clear();
                if !is_public(&field.vis) {
                    field.ty = parse_quote!(_);
                }
            }
        }
        Fields::Unit => {}
    }
}

/// A public item of an `impl`, without its body.
fn public_part(item: &ImplItem) -> Option<ImplItem> {
    let mut item = item.clone();
    match &mut item {
        ImplItem::Fn(it) if is_public(&it.vis) && !is_hidden(&it.attrs) => {
            retain(&mut it.attrs);
            it.block = parse_quote!({});
        }
        ImplItem::Const(it) if is_public(&it.vis) && !is_hidden(&it.attrs) => {
            retain(&mut it.attrs);
            it.expr = parse_quote!(_);
        }
        _ => return None,
    }
    Some(item)
}
