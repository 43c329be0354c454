//! One file of the tree and, for Rust, the facts that the rules need.
//!
//! Rust is read with `syn`, so strings and comments are never mistaken for code; inside macro
//! calls, which `syn` does not read, the tokens are looked at one by one.

use crate::error::Error;
use proc_macro2::{Delimiter, Span, TokenStream, TokenTree};
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// Folders that hold nothing of ours.
const SKIPPED: &[&str] = &[".git", super::corpora::FOLDER];

/// A text file.
#[derive(Debug)]
pub struct Source {
    /// Relative to the root, with `/`.
    pub path: PathBuf,
    /// Its whole content.
    pub text: String,
    /// What was found in it, when it is Rust.
    pub rust: Option<Rust>,
}

/// Facts of a Rust file.
#[derive(Debug, Default)]
pub struct Rust {
    /// Paths that it names, `use` lists taken apart, `self` and `super` resolved to `crate`.
    pub paths: Vec<NamedPath>,
    /// Every function, from its `fn` line to its closing brace.
    pub functions: Vec<Function>,
    /// Every place with the word `unsafe` in code.
    pub unsafes: Vec<Unsafe>,
    /// Modules that it declares.
    pub modules: Vec<(String, usize)>,
    /// Names of the macros that it calls.
    pub macros: Vec<(String, usize)>,
    /// Lines of `#[ignore]`.
    pub ignores: Vec<usize>,
    /// Why it could not be read, and the line.
    pub error: Option<(String, usize)>,
    /// Modules for tests only, as this file declares them: a name, or a file that it names.
    test_modules: Vec<String>,
}

/// A path such as `crate::port::Port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPath {
    /// Its parts.
    pub segments: Vec<String>,
    /// Where it is named.
    pub line: usize,
    /// In code that is built for tests only.
    pub in_test: bool,
}

impl NamedPath {
    /// The parts, joined as in Rust.
    pub fn text(&self) -> String {
        self.segments.join("::")
    }
}

/// A function's extent in lines, both ends included.
#[derive(Debug)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// The line of its signature.
    pub first: usize,
    /// The line of its closing brace.
    pub last: usize,
    /// Whether it makes something of bytes: takes `&[u8]` or `&[u8; N]`, and what it returns is
    /// more than whether.
    pub takes_bytes: bool,
    /// In code that is built for tests only.
    pub in_test: bool,
}

/// Where the word `unsafe` stands, and what for.
#[derive(Debug)]
pub struct Unsafe {
    /// The line.
    pub line: usize,
    /// An `unsafe fn` or trait: its duties stand in a `# Safety` section.
    pub declares: bool,
}

impl Source {
    /// A file with the given content; `path` decides what it is.
    pub fn new(path: impl Into<PathBuf>, text: impl Into<String>) -> Source {
        let (path, text) = (path.into(), text.into());
        let rust = path.extension().is_some_and(|ext| ext == "rs").then(|| facts(&path, &text));
        Source { path, text, rust }
    }

    /// Whether it lies in `folder` or is that file.
    pub fn is_in(&self, folder: &str) -> bool {
        self.path.starts_with(folder)
    }

    /// Lines with their numbers from 1.
    pub fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, line))
    }
}

/// Every text file below `root` except lock files and what cargo builds.
pub fn read_tree(root: &Path) -> Result<Vec<Source>, Error> {
    let mut files = Vec::new();
    walk(root, &mut files)?;
    files.sort();
    let mut sources = Vec::new();
    for file in files {
        let bytes = fs::read(&file).map_err(Error::file("read", &file))?;
        let relative = file.strip_prefix(root).expect("found below the root");
        // Captures, images and built objects are not text.
        if let Ok(text) = String::from_utf8(bytes) {
            sources.push(Source::new(relative, text));
        }
    }
    mark_test_files(&mut sources);
    Ok(sources)
}

/// Whether cargo builds into the folder: `target`, beside a manifest. Modules are called so too.
pub fn is_built(folder: &Path) -> bool {
    folder.ends_with("target") && folder.with_file_name("Cargo.toml").is_file()
}

fn walk(dir: &Path, files: &mut Vec<PathBuf>) -> Result<(), Error> {
    for entry in fs::read_dir(dir).map_err(Error::file("list", dir))? {
        let entry = entry.map_err(Error::file("list", dir))?;
        let kind = entry.file_type().map_err(Error::file("look at", entry.path()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // In a linked worktree `.git` is a file.
        if SKIPPED.contains(&name.as_str()) || is_built(&entry.path()) {
            continue;
        }
        if kind.is_dir() {
            walk(&entry.path(), files)?;
        } else if kind.is_file() && name != "Cargo.lock" {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// Marks the files that some `#[cfg(test)] mod name;` declares, and those of test folders.
fn mark_test_files(sources: &mut [Source]) {
    let mut marked: HashSet<PathBuf> = HashSet::new();
    for source in sources.iter() {
        for name in source.rust.iter().flat_map(|rust| &rust.test_modules) {
            // What `#[path]` names lies beside the file, everything else in the module's folder.
            let beside = source.path.parent().unwrap_or(Path::new(""));
            let is_path = name.ends_with(".rs");
            let folder = if is_path { beside.into() } else { module_folder(&source.path) };
            marked.insert(folder.join(name));
            marked.insert(folder.join(format!("{name}.rs")));
        }
    }
    for source in sources {
        let by_declaration = marked.iter().any(|path| source.path.starts_with(path));
        let by_folder = source.path.iter().any(|part| part == "tests" || part == "benches");
        if let Some(rust) = source.rust.as_mut().filter(|_| by_declaration || by_folder) {
            rust.paths.iter_mut().for_each(|path| path.in_test = true);
            rust.functions.iter_mut().for_each(|function| function.in_test = true);
        }
    }
}

/// The folder where a file's child modules lie.
fn module_folder(path: &Path) -> PathBuf {
    let parent = path.parent().unwrap_or(Path::new(""));
    match path.file_stem().and_then(|stem| stem.to_str()) {
        Some("mod" | "lib" | "main") | None => parent.to_path_buf(),
        Some(stem) => parent.join(stem),
    }
}

/// The module that a file is, from its path: `dataplane/src/port/mod.rs` is `[port]`.
fn module_of(path: &Path) -> Vec<String> {
    let folder = module_folder(path);
    let mut parts = folder.iter().map(|part| part.to_string_lossy().into_owned());
    parts.by_ref().find(|part| part == "src");
    parts.collect()
}

fn facts(path: &Path, text: &str) -> Rust {
    let mut rust = Rust::default();
    match syn::parse_file(text) {
        Ok(file) => {
            let mut reader = Reader { rust: &mut rust, module: module_of(path), test_depth: 0 };
            reader.visit_file(&file);
        }
        Err(error) => rust.error = Some((error.to_string(), line(error.span()))),
    }
    rust
}

fn line(span: Span) -> usize {
    span.start().line
}

/// Walks the syntax tree and notes facts.
struct Reader<'a> {
    rust: &'a mut Rust,
    module: Vec<String>,
    test_depth: u32,
}

impl Reader<'_> {
    fn note_path(&mut self, segments: Vec<String>, line: usize) {
        let segments = self.resolve(segments);
        self.rust.paths.push(NamedPath { segments, line, in_test: self.test_depth > 0 });
    }

    /// `self::a` and `super::a` as `crate::…`.
    fn resolve(&self, mut segments: Vec<String>) -> Vec<String> {
        let mut module = self.module.clone();
        let mut relative = false;
        while let Some(first) = segments.first() {
            match first.as_str() {
                "self" if segments.len() > 1 => {}
                "super" => drop(module.pop()),
                _ => break,
            }
            relative = true;
            segments.remove(0);
        }
        if !relative {
            return segments;
        }
        let mut absolute = vec!["crate".to_string()];
        absolute.extend(module);
        absolute.extend(segments);
        absolute
    }

    fn note_use(&mut self, tree: &syn::UseTree, prefix: &[String]) {
        let with = |name: &syn::Ident| {
            let mut path = prefix.to_vec();
            path.push(name.to_string());
            path
        };
        match tree {
            syn::UseTree::Path(path) => self.note_use(&path.tree, &with(&path.ident)),
            syn::UseTree::Name(name) => self.note_path(with(&name.ident), line(name.span())),
            syn::UseTree::Rename(name) => self.note_path(with(&name.ident), line(name.span())),
            syn::UseTree::Glob(glob) => self.note_path(prefix.to_vec(), line(glob.span())),
            syn::UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.note_use(tree, prefix));
            }
        }
    }

    /// Inside a macro call: paths, `unsafe` and calls of further macros, token by token.
    fn note_tokens(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut path: Vec<String> = Vec::new();
        for (index, token) in tokens.iter().enumerate() {
            let joined = index >= 2
                && is_punct(&tokens[index - 1], ':')
                && is_punct(&tokens[index - 2], ':');
            match token {
                TokenTree::Ident(ident) => {
                    if !joined {
                        self.end_path(&mut path, token.span());
                    }
                    path.push(ident.to_string());
                    if ident == "unsafe" {
                        self.rust
                            .unsafes
                            .push(Unsafe { line: line(ident.span()), declares: false });
                    }
                    if is_macro_call(&tokens[index + 1..]) {
                        self.rust.macros.push((ident.to_string(), line(ident.span())));
                    }
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => {}
                TokenTree::Group(group) => {
                    self.end_path(&mut path, token.span());
                    self.note_tokens(group.stream());
                }
                _ => self.end_path(&mut path, token.span()),
            }
        }
        if let Some(last) = tokens.last() {
            self.end_path(&mut path, last.span());
        }
    }

    fn end_path(&mut self, path: &mut Vec<String>, span: Span) {
        let segments = std::mem::take(path);
        if segments.len() > 1 {
            self.note_path(segments, line(span));
        }
    }

    fn note_function(&mut self, sig: &syn::Signature, block: Option<&syn::Block>) {
        if let Some(unsafety) = &sig.unsafety {
            self.rust.unsafes.push(Unsafe { line: line(unsafety.span()), declares: true });
        }
        if let Some(block) = block {
            self.rust.functions.push(Function {
                name: sig.ident.to_string(),
                first: line(sig.span()),
                last: block.span().end().line,
                takes_bytes: takes_bytes(sig),
                in_test: self.test_depth > 0,
            });
        }
    }

    /// Visits what has attributes, knowing whether they say that it is for tests only.
    fn within(&mut self, attrs: &[syn::Attribute], visit: impl FnOnce(&mut Self)) {
        let test = u32::from(attrs.iter().any(is_test_attribute));
        self.test_depth += test;
        visit(self);
        self.test_depth -= test;
    }
}

/// See [`Function::takes_bytes`].
fn takes_bytes(sig: &syn::Signature) -> bool {
    let is_byte = |ty: &syn::Type| matches!(ty, syn::Type::Path(ty) if ty.path.is_ident("u8"));
    let is_bytes = |ty: &syn::Type| match ty {
        syn::Type::Reference(to) if to.mutability.is_none() => match &*to.elem {
            syn::Type::Slice(slice) => is_byte(&slice.elem),
            syn::Type::Array(array) => is_byte(&array.elem),
            _ => false,
        },
        _ => false,
    };
    let gives = match &sig.output {
        syn::ReturnType::Default => false,
        syn::ReturnType::Type(_, ty) => {
            !matches!(&**ty, syn::Type::Path(ty) if ty.path.is_ident("bool"))
        }
    };
    let takes = |input: &syn::FnArg| matches!(input, syn::FnArg::Typed(arg) if is_bytes(&arg.ty));
    gives && sig.inputs.iter().any(takes)
}

fn is_punct(token: &TokenTree, wanted: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == wanted)
}

fn is_macro_call(rest: &[TokenTree]) -> bool {
    match rest {
        [bang, TokenTree::Group(group), ..] => {
            is_punct(bang, '!') && group.delimiter() != Delimiter::None
        }
        _ => false,
    }
}

/// The file that `#[path = "…"]` names.
fn path_attribute(attr: &syn::Attribute) -> Option<String> {
    let syn::Meta::NameValue(pair) = &attr.meta else { return None };
    let syn::Expr::Lit(value) = &pair.value else { return None };
    let syn::Lit::Str(name) = &value.lit else { return None };
    attr.path().is_ident("path").then(|| name.value())
}

/// `#[test]` or `#[cfg(test)]`, also among other conditions, but not `not(test)`.
fn is_test_attribute(attr: &syn::Attribute) -> bool {
    if attr.path().is_ident("test") {
        return true;
    }
    let syn::Meta::List(list) = &attr.meta else { return false };
    let text = list.tokens.to_string();
    let names_test = text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == "test");
    attr.path().is_ident("cfg") && names_test && !text.contains("not")
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.within(&item.attrs, |reader| reader.note_use(&item.tree, &[]));
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.note_path(segments, line(path.span()));
        visit::visit_path(self, path);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.rust.modules.push((item.ident.to_string(), line(item.ident.span())));
        if item.content.is_none() && item.attrs.iter().any(is_test_attribute) {
            let named = item.attrs.iter().find_map(path_attribute);
            self.rust.test_modules.push(named.unwrap_or(item.ident.to_string()));
        }
        self.module.push(item.ident.to_string());
        self.within(&item.attrs, |reader| visit::visit_item_mod(reader, item));
        self.module.pop();
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.note_function(&item.sig, Some(&item.block));
        self.within(&item.attrs, |reader| visit::visit_item_fn(reader, item));
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.note_function(&item.sig, Some(&item.block));
        self.within(&item.attrs, |reader| visit::visit_impl_item_fn(reader, item));
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        self.note_function(&item.sig, item.default.as_ref());
        visit::visit_trait_item_fn(self, item);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if let Some(unsafety) = &item.unsafety {
            self.rust.unsafes.push(Unsafe { line: line(unsafety.span()), declares: false });
        }
        self.within(&item.attrs, |reader| visit::visit_item_impl(reader, item));
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        if let Some(unsafety) = &item.unsafety {
            self.rust.unsafes.push(Unsafe { line: line(unsafety.span()), declares: true });
        }
        visit::visit_item_trait(self, item);
    }

    fn visit_expr_unsafe(&mut self, expr: &'ast syn::ExprUnsafe) {
        let line = line(expr.unsafe_token.span());
        self.rust.unsafes.push(Unsafe { line, declares: false });
        visit::visit_expr_unsafe(self, expr);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        if let Some(name) = call.path.segments.last() {
            self.rust.macros.push((name.ident.to_string(), line(name.ident.span())));
        }
        self.note_tokens(call.tokens.clone());
    }

    fn visit_attribute(&mut self, attr: &'ast syn::Attribute) {
        if attr.path().is_ident("ignore") {
            self.rust.ignores.push(line(attr.span()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(path: &str, text: &str) -> Vec<(String, bool)> {
        let rust = Source::new(path, text).rust.unwrap();
        assert!(rust.error.is_none(), "{:?}", rust.error);
        rust.paths.iter().map(|path| (path.text(), path.in_test)).collect()
    }

    #[test]
    fn what_cargo_builds_is_left_out_and_a_module_is_not() {
        let root = crate::process::root();
        assert!(is_built(&root.join("target")) && is_built(&root.join("ebpf/prog/target")));
        assert!(!is_built(&root.join("rdma/src/nvmf/target")));
        let found = read_tree(root).unwrap();
        assert!(found.iter().any(|source| source.path.starts_with("rdma/src/nvmf/target")));
        assert!(found.iter().all(|source| !source.path.starts_with("target")));
    }

    #[test]
    fn use_lists_are_taken_apart_and_super_is_resolved() {
        let text = "use crate::{port::{self, Port}, switch};\nuse super::queue::Ring;\n";
        let found = paths("dataplane/src/virtio/blk.rs", text);
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        let want = [
            "crate::port::self",
            "crate::port::Port",
            "crate::switch",
            "crate::virtio::queue::Ring",
        ];
        assert_eq!(names, want);
    }

    #[test]
    fn super_counts_inline_modules() {
        let text = "mod tests { use super::super::drop; }";
        assert_eq!(paths("dataplane/src/port/mod.rs", text)[0].0, "crate::drop");
    }

    #[test]
    fn paths_inside_macro_calls_are_seen() {
        let text = "fn f() { assert_eq!(crate::port::x(), vec![std::fs::read(1)]); }";
        let found = paths("a/src/a.rs", text);
        assert!(found.iter().any(|(name, _)| name == "crate::port::x"), "{found:?}");
        assert!(found.iter().any(|(name, _)| name == "std::fs::read"), "{found:?}");
    }

    #[test]
    fn code_for_tests_is_told_apart() {
        let text = "use std::fs;\n#[cfg(test)] mod tests { use std::time; }\n\
                    #[cfg(not(test))] use std::thread;";
        let found = paths("a/src/a.rs", text);
        let want = [("std::fs", false), ("std::time", true), ("std::thread", false)];
        assert_eq!(found, want.map(|(name, in_test)| (name.to_string(), in_test)));
    }

    #[test]
    fn a_file_declared_for_tests_only_is_test_code() {
        let mut sources = [
            Source::new("a/src/engine.rs", "//! E\n#[cfg(test)]\nmod cases;\n"),
            Source::new("a/src/engine/cases.rs", "//! C\nuse std::fs;\n"),
            Source::new("a/src/cases.rs", "//! Not that one\nuse std::fs;\n"),
        ];
        mark_test_files(&mut sources);
        let in_test = |index: usize| sources[index].rust.as_ref().unwrap().paths[0].in_test;
        assert!(in_test(1));
        assert!(!in_test(2));
    }

    #[test]
    fn what_is_not_rust_is_named_with_its_line() {
        let rust = Source::new("a.rs", "fn a() {}\nfn {").rust.unwrap();
        assert_eq!(rust.error.unwrap().1, 2);
    }
}
