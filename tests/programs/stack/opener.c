/* Runs the `main` of a library, its first argument, with the other arguments. */
#include <dlfcn.h>
#include <stdio.h>

int main(int count, char **arguments)
{
	void *library = count > 1 ? dlopen(arguments[1], RTLD_NOW) : NULL;
	int (*its_main)(int, char **) = library ? dlsym(library, "main") : NULL;

	if (!its_main) {
		fputs("no library with a main\n", stderr);
		return 1;
	}
	return its_main(count - 1, arguments + 1);
}
