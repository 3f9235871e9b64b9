#!/usr/bin/env bash
# Makes template.html anew: vega, vega-lite and vega-embed from npm, as they come, in one page.
set -euo pipefail
cd "$(dirname "$0")"
packages=(vega@5.33.1 vega-lite@5.23.0 vega-embed@6.29.0) # each needs those before it
work=$(mktemp -d)
npm install --prefix "$work" --ignore-scripts --no-audit --no-fund --silent "${packages[@]}"
{
    echo '<!DOCTYPE html>'
    echo '<html>'
    echo '<head>'
    echo '<meta charset="utf-8">'
    echo '<title>DVC plots</title>'
    echo '<style>table { border-spacing: 15px; }</style>'
    for package in "${packages[@]}"; do
        name=${package%@*}
        echo "<script> // $package, BSD-3-Clause, see LICENSES.txt"
        grep -v '^//# sourceMappingURL=' "$work/node_modules/$name/build/$name.min.js"
        echo '</script>'
    done
    echo '</head>'
    echo '<body>'
    echo '{plot_divs}'
    echo '</body>'
    echo '</html>'
} >template.html
rm -r "$work"
