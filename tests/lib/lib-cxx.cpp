// SPDX-License-Identifier: LGPL-2.1-or-later
//
// If this failed, a C++ program could not include samepage.h, pedantically and
// without a warning, or would not find the functions when linking.
#include "samepage.h"

#include <cstdio>
#include <cstring>
#include <memory>
#include <string>

#include <sys/mman.h>
#include <unistd.h>

namespace {

struct closer {
	void operator()(samepage *sp) const { samepage_close(sp); }
};

int number = 0;
bool good = true;

void check(bool ok, const char *what)
{
	std::printf("%sok %d - %s\n", ok ? "" : "not ", ++number, what);
	good = good && ok;
}

} // namespace

int main()
{
	const std::size_t bytes = 16 * static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
	samepage_options options{};
	samepage_result result{};
	// The function of the same name hides the type: say "struct".
	struct samepage_stats stats{};
	samepage *raw = nullptr;

	options.size = sizeof(options);
	options.flags = SAMEPAGE_EMBEDDED;
	options.store_bytes = 1u << 24;
	check(samepage_open(&raw, &options) == 0 && raw, "open");
	std::unique_ptr<samepage, closer> sp(raw);
	void *p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check(p != MAP_FAILED, "mmap");
	std::memset(p, 0x5c, bytes);
	check(samepage_merge(sp.get(), p, bytes, 0, &result) == 0, "merge");
	check(result.pages_looked == 16, "all pages were looked at");
	check(static_cast<unsigned char *>(p)[bytes - 1] == 0x5c, "the bytes are there");
	check(samepage_stats(sp.get(), &stats, sizeof(stats)) == 0 && stats.merges == 1, "stats");
	check(samepage_unmerge(sp.get(), p, bytes) == 0, "unmerge");
	check(samepage_discard(sp.get(), p, bytes) == 0, "discard");
	check(static_cast<unsigned char *>(p)[bytes - 1] == 0, "zeros");
	check(std::string("unique") == samepage_reason_name(SAMEPAGE_REASON_UNIQUE), "reason");
	check(samepage_reason_text(SAMEPAGE_REASON_COUNT) == nullptr, "no reason");
	check(std::string(samepage_version()).size() >= 5, "version");
	std::printf("1..%d\n", number);
	return good ? 0 : 1;
}
