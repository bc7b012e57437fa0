#!/usr/bin/env bash
# Makes the environment if it is missing, then builds the site of README, docs/ and the docstrings into site/.
# A link that leads nowhere is an error. The site's pages open from the disk; its search needs a server.
#
#   bash launch/docs.sh [--serve]
#
# --serve   serves the site at http://127.0.0.1:8000 instead, and builds it again when a file changes
source "$(dirname "$0")/common.sh"
case "$*" in
  '') command=build ;;
  --serve) command=serve ;;
  *) fail "'$*' is no option here; write docs.sh or docs.sh --serve." ;;
esac
make_environment requirements-docs.txt
# Otherwise Material begins with a page about MkDocs 2, which requirements-docs.txt rules out.
export NO_MKDOCS_2_WARNING=1
exec .venv/bin/python -m mkdocs "$command"
