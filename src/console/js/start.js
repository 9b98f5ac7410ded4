// Here it begins.

addEventListener('hashchange', open);
showTheme();
open();
